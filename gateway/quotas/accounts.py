"""What one key may still do, and what it has done that Redis was not told yet.

Keys that came from each other by rotation are one account. Knows nothing of requests, replies or Redis.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.quotas.buckets import Bucket
from vcllm.contracts.keys import Budget, KeyRecord, Period
from vcllm.stores.limits import Left, Spent, period_end


@dataclass(frozen=True, slots=True)
class Defaults:
    """For keys that do not say otherwise; 0: no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_chats: int = 0


class Account:
    """The buckets of one account, where it has limits, and its books."""

    __slots__ = (
        "budget",
        "budget_ends",
        "chats",
        "expected",
        "known_at",
        "name",
        "num_requests",
        "num_tokens",
        "requests",
        "slots",
        "terms",
        "tokens",
        "used",
    )

    def __init__(self, record: KeyRecord, defaults: Defaults, now: float, share: float) -> None:
        self.name = record.counted_as
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.slots: Bucket | None = None
        self.budget: Budget | None = None
        self.budget_ends = 0.0
        """Unix second at which `used` begins anew."""
        self.used = 0
        """Tokens of the budget, by everybody's count and what was told since."""
        self.expected = 0
        """Estimates of the answers being written."""
        self.chats = 0
        """Being answered here."""
        self.num_requests = self.num_tokens = 0
        """Not told yet."""
        self.known_at = float("-inf")
        """When all was last known that the others had spent."""
        self.hold_to(record, defaults, now, share)

    def hold_to(self, record: KeyRecord, defaults: Defaults, now: float, share: float) -> None:
        """The limits and budget of this record, from now on; what is used stays used."""
        self.terms = record.limits, record.budget
        limits = record.limits
        per_minute = _chosen(limits.requests_per_minute, defaults.requests_per_minute)
        self.requests = _resized(self.requests, per_minute, per_minute / 60, now, share)
        per_minute = _chosen(limits.tokens_per_minute, defaults.tokens_per_minute)
        self.tokens = _resized(self.tokens, per_minute, per_minute / 60, now, share)
        chats = _chosen(limits.concurrent_chats, defaults.concurrent_chats)
        known, self.slots = self.slots, _resized(self.slots, chats, 0.0, now, share)
        if known is None and self.slots is not None:
            self.slots.take(self.chats)
        before, self.budget = self.budget, record.budget
        if self.budget is not None and (before is None or before.period is not self.budget.period):
            self.budget_ends, self.known_at = 0.0, float("-inf")

    @property
    def has_news(self) -> bool:
        """Something here is to be told, or held so that others know of it."""
        return bool(self.num_requests or self.num_tokens or self.chats or self._has_spent)

    @property
    def _has_spent(self) -> bool:
        return any(bucket is not None and bucket.spent for bucket in (self.requests, self.tokens, self.slots))

    def budget_left(self, wall: float) -> bool:
        """Whether another answer may begin: the one that crosses the line is finished."""
        if self.budget is None:
            return True
        if wall >= self.budget_ends:
            self.used = 0
            self.budget_ends = period_end(self.budget.period, wall)
        return self.used + self.num_tokens + self.expected < self.budget.tokens

    def begin_exchange(self) -> Spent:
        """What is to be told; from now on it counts as told."""
        if self.slots:
            self.slots.begin_exchange()
        spent = Spent(
            account=self.name,
            requests=self.num_requests,
            tokens=self.num_tokens,
            requests_taken=self.requests.begin_exchange() if self.requests else 0.0,
            tokens_taken=self.tokens.begin_exchange() if self.tokens else 0.0,
            requests_per_minute=int(self.requests.capacity) if self.requests else 0,
            tokens_per_minute=int(self.tokens.capacity) if self.tokens else 0,
            chats=self.chats,
        )
        self.used += self.num_tokens
        self.num_requests = self.num_tokens = 0
        return spent

    def end_exchange(self, told: Spent, left: Left, share: float, now: float) -> None:
        """Take over what is left, by everybody's count, of what was told."""
        if self.requests:
            self.requests.end_exchange(left.requests, share, now)
        if self.tokens:
            self.tokens.end_exchange(left.tokens, share, now)
        if self.slots:
            free = self.slots.capacity - told.chats - left.chats_elsewhere
            self.slots.end_exchange(free, share, now)
        if self.budget is not None:
            self.used = left.used_today if self.budget.period is Period.DAY else left.used_this_month
        self.known_at = now


def _resized(bucket: Bucket | None, capacity: int, per_s: float, now: float, share: float) -> Bucket | None:
    """capacity: 0: no limit, so no bucket."""
    if not capacity:
        return None
    if bucket is None:
        return Bucket(capacity, per_s, now, share)
    bucket.resize(capacity, per_s)
    return bucket


def _chosen(own: int | None, default: int) -> int:
    return default if own is None else own
