"""API keys: scopes and what is stored of a key (never the key itself)."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from vcllm.contracts.base import Contract


class Scope(StrEnum):
    """What a key may do."""

    CHAT = "chat"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ATTACK = "attack"
    """Reach the Attacker; never part of a chat key."""
    REVIEW = "review"
    """Read what the Critic is not sure of, and decide; what is approved is trained on."""
    PROMOTE = "models:promote"
    ADMIN = "admin"
    """Everything, and managing keys."""


class KeyRecord(Contract):
    """What is stored under the keyed hash of a key."""

    id: str
    name: str = Field(max_length=100)
    scopes: list[Scope] = Field(min_length=1)
    created: float
    expires: float | None = None
    """Unix seconds; None: does not expire."""
    hint: str
    """First characters of the key, to recognise it in a list."""
