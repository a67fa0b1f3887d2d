"""What can go wrong with a launch, said in one sentence."""

from __future__ import annotations


class LaunchError(Exception):
    """The fleet cannot start or carry on; the sentence says why and what to do."""
