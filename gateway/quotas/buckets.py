"""A token bucket of which several gateways spend: this one's view of it, exact as often as they are in touch.

Between two exchanges a gateway may spend its n-th part of what was left, and always one request, so that together
they hardly spend more than there is. What was spent beyond it is paid back: the level goes below zero.

Knows neither Redis nor keys; time is given to it, in seconds of a clock that does not jump.
"""

from __future__ import annotations

import math

NOT_NOW_S = 1.0
"""What is said when the rest may be spent by the others, until the gateways have been in touch again."""


class Bucket:
    """Holds up to `capacity`, gains `per_s`; `per_s` = 0: only what is given back comes back."""

    __slots__ = ("capacity", "fresh", "level", "part", "per_s", "share", "spent", "when")

    def __init__(self, capacity: float, per_s: float, now: float, share: float = 1.0) -> None:
        """share: this gateway's part of the whole, one over the number of gateways."""
        self.capacity = capacity
        self.per_s = per_s
        self.share = share
        self.level = capacity
        """What all gateways together have left, as far as is known here."""
        self.part = capacity * share
        """What of it may be spent here before the next exchange."""
        self.spent = 0.0
        """Since the last exchange began; below 0: given back."""
        self.fresh = True
        """Nothing was spent since the last exchange: one request may draw on all there is."""
        self.when = now

    def wait_s(self, cost: float, now: float) -> float:
        """Seconds until `cost` can be taken; 0: now. What costs more than the bucket holds needs a full one."""
        self._gain(now)
        missing = min(cost, self.capacity) - self.level
        if missing > 1e-9:
            return missing / self.per_s if self.per_s else NOT_NOW_S
        if self.fresh or self.part - min(cost, self.capacity * self.share) > -1e-9:
            return 0.0
        return NOT_NOW_S

    def take(self, cost: float) -> None:
        """Whether it fits or not; below 0: give back."""
        self.level = min(self.capacity, self.level - cost)
        self.part = min(self.capacity * self.share, self.part - cost)
        self.spent += cost
        if cost > 0:
            self.fresh = False

    def resize(self, capacity: float, per_s: float, now: float) -> None:
        """Hold so much from now on. What is in use stays in use; from now on it comes back at the new rate."""
        self._gain(now)
        if not per_s:
            self.level += capacity - self.capacity
            self.part += (capacity - self.capacity) * self.share
        self.capacity, self.per_s = capacity, per_s
        self.level = min(capacity, self.level)
        self.part = min(capacity * self.share, self.part)

    def is_full(self, now: float) -> bool:
        """Nothing is in use."""
        self._gain(now)
        return self.level >= self.capacity

    def begin_exchange(self) -> float:
        """What was spent since the last one; from now on it is told."""
        spent, self.spent = self.spent, 0.0
        return spent

    def end_exchange(self, level: float, share: float, now: float) -> None:
        """level: what is left by everybody's count, less what was spent here while the exchange was under way."""
        self.share = share
        self.level = min(self.capacity, level - self.spent)
        self.part = min(self.capacity * share, level * share - self.spent)
        self.fresh = self.spent <= 0
        self.when = now

    def _gain(self, now: float) -> None:
        gained = (now - self.when) * self.per_s
        if gained > 0:
            self.level = min(self.capacity, self.level + gained)
            self.part = min(self.capacity * self.share, self.part + gained * self.share)
        self.when = now

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self.level + 1e-9))

    @property
    def full_in_s(self) -> float:
        """Until it holds all it can."""
        return (self.capacity - self.level) / self.per_s if self.per_s else 0.0


def told_duration(seconds: float) -> str:
    """As OpenAI's `x-ratelimit-reset-*` headers have it: `0s`, `20ms`, `8.64s`, `6m0s`; rounded up."""
    ms = math.ceil(seconds * 1000 - 1e-6)
    if ms < 1000:
        return f"{ms}ms" if ms > 0 else "0s"
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes}m{ms / 1000:g}s" if minutes else f"{ms / 1000:g}s"
