"""What it takes for a model to pass as the version it is said to be; shared by those that open versions."""

from __future__ import annotations

NEAR_TIE = 0.5
"""Logits by which arithmetic in another precision, or on another device, may lead to another greedy text."""


class Refused(Exception):
    """A version that must not be served, and why."""
