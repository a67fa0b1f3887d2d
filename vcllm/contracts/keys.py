"""API keys: scopes, limits, budgets, and what is stored of a key (never the key itself)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from vcllm.contracts.base import Contract
from vcllm.contracts.guard import GuardMode


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


class Period(StrEnum):
    """After which a budget is whole again; both begin at midnight UTC."""

    DAY = "day"
    MONTH = "month"


Bound = Annotated[int, Field(ge=0, le=10**9)]
KeyName = Annotated[str, Field(min_length=1, max_length=100)]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]


class KeyLimits(Contract):
    """How much at once. None: what the gateway's settings say; 0: without a limit, whatever they say."""

    requests_per_minute: Bound | None = None
    tokens_per_minute: Bound | None = None
    """Of prompts and answers together."""
    concurrent_chats: Bound | None = None
    """Answers being written at the same time."""


class Budget(Contract):
    """How much in all; the answer that crosses the line is still finished."""

    tokens: int = Field(ge=1, le=10**15)
    """Of prompts and answers together."""
    period: Period = Period.MONTH


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
    limits: KeyLimits = KeyLimits()
    budget: Budget | None = None
    account: str | None = None
    """Under which limits, budget and usage are counted, so that a rotation doubles none; None: its own id."""
    guard: GuardMode | None = None
    """Mode of the guard for its chats, stricter or laxer than the charter's: an administrator says so. None: the
    charter's."""
    replaced_by: str | None = None
    """Id of the key that took its place; this one only lives out its overlap."""

    @property
    def counted_as(self) -> str:
        return self.account or self.id


class KeyChange(Contract):
    """What of a key is to be different. A field that is left out stays; null takes it back to the default."""

    limits: KeyLimits = KeyLimits()
    """Those that are named."""
    budget: Budget | None = None
    guard: GuardMode | None = None

    def apply(self, record: KeyRecord) -> KeyRecord:
        return record.model_copy(
            update={
                "limits": record.limits.model_copy(update=_given(self.limits)),
                **{name: value for name, value in _given(self).items() if name != "limits"},
            }
        )

    def share(self) -> KeyChange:
        """Of it, what goes for every key of the same account."""
        return KeyChange(**{name: value for name, value in _given(self).items() if name != "guard"})

    @property
    def is_empty(self) -> bool:
        return not self.model_fields_set - {"limits"} and not self.limits.model_fields_set


def _given(contract: Contract) -> dict[str, Any]:
    return {name: getattr(contract, name) for name in contract.model_fields_set}


class DayUsage(Contract):
    """What one day saw, in UTC."""

    day: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    requests: int = Field(ge=0)
    tokens: int = Field(ge=0)
    """Of prompts and answers together, by the Actor's count."""


class KeyUsage(Contract):
    """`GET /v1/keys/{id}/usage`: the newest day first; days without use are left out."""

    id: str
    account: str
    """Keys that came from each other by rotation share it, and this usage."""
    budget: Budget | None = None
    used: int | None = None
    """Tokens used of the budget since its period began; None: there is no budget."""
    data: list[DayUsage]
