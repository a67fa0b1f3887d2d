"""A breaker: who fails again and again is spared for a while, then tried with one request at a time.

Knows nothing of what is asked; for one event loop, not for threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

FAILURES = 5
"""In a row, that open it."""
COOLDOWN_S = 5.0
"""After the first opening; twice as long after each try that fails."""
LONGEST_S = 60.0


class BreakerState(StrEnum):
    """As metrics show it."""

    CLOSED = "closed"
    OPEN = "open"
    TRYING = "trying"
    """One request is under way, and decides."""


class Breaker:
    """Told of every success and failure; asked before anything new is sent."""

    def __init__(
        self,
        failures: int = FAILURES,
        cooldown_s: float = COOLDOWN_S,
        longest_s: float = LONGEST_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = BreakerState.CLOSED
        self._limit = failures
        self._first_cooldown_s = self._cooldown_s = cooldown_s
        self._longest_s = longest_s
        self._clock = clock
        self._failed = 0
        self._open_until = 0.0

    @property
    def allows(self) -> bool:
        """Whether something may be sent now."""
        if self.state is BreakerState.CLOSED:
            return True
        return self.state is BreakerState.OPEN and self._clock() >= self._open_until

    def begin(self) -> None:
        """Something is sent; after the cooldown it is the one that decides."""
        if self.state is BreakerState.OPEN and self.allows:
            self.state = BreakerState.TRYING

    def answered(self) -> None:
        """An answer has begun: that decides, but clears nothing, for it may break off as the ones before it did."""
        self.state = BreakerState.CLOSED

    def succeed(self) -> None:
        """An answer is complete."""
        self.state = BreakerState.CLOSED
        self._failed = 0
        self._cooldown_s = self._first_cooldown_s

    def fail(self) -> None:
        """Open after enough failures in a row, or at once when it was the one that decides."""
        self._failed += 1
        if self.state is BreakerState.TRYING:
            self._cooldown_s = min(2 * self._cooldown_s, self._longest_s)
        elif self.state is BreakerState.OPEN or self._failed < self._limit:
            return
        self.state = BreakerState.OPEN
        self._open_until = self._clock() + self._cooldown_s

    def give_up(self) -> None:
        """What was sent ended without telling anything, as when its client left: another one decides."""
        if self.state is BreakerState.TRYING:
            self.state = BreakerState.OPEN
