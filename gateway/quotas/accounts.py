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
        "_lifted",
        "budget",
        "chats",
        "chats_elsewhere",
        "day_ends",
        "expected",
        "known_at",
        "month_ends",
        "name",
        "num_requests",
        "num_tokens",
        "requests",
        "slots",
        "terms",
        "tokens",
        "used_at",
        "used_this_month",
        "used_today",
    )

    def __init__(self, record: KeyRecord, defaults: Defaults, now: float, share: float) -> None:
        self.name = record.counted_as
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.slots: Bucket | None = None
        self._lifted: dict[str, Bucket] = {}
        """Of limits that were taken away, so that setting them again gives nothing back."""
        self.budget: Budget | None = None
        self.day_ends = self.month_ends = 0.0
        """Unix seconds at which `used_today` and `used_this_month` begin anew."""
        self.used_today = self.used_this_month = 0
        """Tokens, by everybody's count and what was told since; both, as any budget may be set at any time."""
        self.expected = 0
        """Estimates of the answers being written."""
        self.chats = 0
        """Being answered here."""
        self.chats_elsewhere = 0
        """When last heard of."""
        self.num_requests = self.num_tokens = 0
        """Not told yet."""
        self.known_at = float("-inf")
        """When all was last known that the others had spent."""
        self.used_at = now
        """When it was last asked for something, granted or not."""
        self.hold_to(record, defaults, now, share)

    def hold_to(self, record: KeyRecord, defaults: Defaults, now: float, share: float) -> None:
        """The limits and budget of this record, from now on; what is used stays used."""
        self.terms = record.limits, record.budget
        limits = record.limits
        per_minute = _chosen(limits.requests_per_minute, defaults.requests_per_minute)
        self.requests = self._resized("requests", self.requests, per_minute, now, share)
        per_minute = _chosen(limits.tokens_per_minute, defaults.tokens_per_minute)
        self.tokens = self._resized("tokens", self.tokens, per_minute, now, share)
        self._hold_chats_to(_chosen(limits.concurrent_chats, defaults.concurrent_chats), now, share)
        self.budget = record.budget

    @property
    def has_news(self) -> bool:
        """Something here is to be told, or held so that others know of it."""
        return bool(self.num_requests or self.num_tokens or self.chats or self._has_spent)

    @property
    def is_due(self) -> bool:
        """To be part of the next exchange: there is news, or somebody asked since the last, if only to be refused."""
        return self.has_news or self.used_at > self.known_at

    @property
    def _has_spent(self) -> bool:
        return any(bucket is not None and bucket.spent for bucket in (self.requests, self.tokens, self.slots))

    def budget_left(self, wall: float) -> bool:
        """Whether another answer may begin: the one that crosses the line is finished."""
        if wall >= self.day_ends:
            self._begin_day(wall)
        if self.budget is None:
            return True
        used = self.used_today if self.budget.period is Period.DAY else self.used_this_month
        return used + self.num_tokens + self.expected < self.budget.tokens

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
        self.used_today += self.num_tokens
        self.used_this_month += self.num_tokens
        self.num_requests = self.num_tokens = 0
        return spent

    def end_exchange(self, told: Spent, left: Left, share: float, now: float) -> None:
        """Take over what is left, by everybody's count, of what was told; a limit set meanwhile was not."""
        if self.requests and told.requests_per_minute:
            self.requests.end_exchange(left.requests, share, now)
        if self.tokens and told.tokens_per_minute:
            self.tokens.end_exchange(left.tokens, share, now)
        self.chats_elsewhere = left.chats_elsewhere
        if self.slots:
            self._count_slots(self.slots, told.chats, share, now)
        self.used_today, self.used_this_month = left.used_today, left.used_this_month
        self.known_at = now

    def _resized(self, kind: str, bucket: Bucket | None, per_minute: int, now: float, share: float) -> Bucket | None:
        """per_minute: 0: no limit, so no bucket."""
        if not per_minute:
            if bucket is not None:
                self._lifted[kind] = bucket
            return None
        if bucket is None:
            bucket = self._lifted.pop(kind, None)
            if bucket is None or bucket.is_full(now):
                return Bucket(per_minute, per_minute / 60, now, share)
            bucket.share = share
        bucket.resize(per_minute, per_minute / 60, now)
        return bucket

    def _hold_chats_to(self, most: int, now: float, share: float) -> None:
        """most: 0: no limit. Chats that run already have their slots, too."""
        if not most:
            self.slots = None
        elif self.slots is None:
            self.slots = Bucket(most, 0.0, now, share)
            self._count_slots(self.slots, 0, share, now)
        else:
            self.slots.resize(most, 0.0, now)

    def _count_slots(self, slots: Bucket, num_told: int, share: float, now: float) -> None:
        """num_told: of the chats here, those that the others know of."""
        slots.spent = self.chats - num_told
        slots.end_exchange(slots.capacity - num_told - self.chats_elsewhere, share, now)

    def _begin_day(self, wall: float) -> None:
        """What was used before does not count any more; the same at the first of a month."""
        self.used_today, self.day_ends = 0, period_end(Period.DAY, wall)
        if wall >= self.month_ends:
            self.used_this_month, self.month_ends = 0, period_end(Period.MONTH, wall)


def _chosen(own: int | None, default: int) -> int:
    return default if own is None else own
