"""A bounded door: so much work may be inside (waiting or running); the rest is told when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vcllm.contracts.problems import Overloaded

REMEMBERED = 64
"""Completions the rate is measured over."""
FIRST_GUESS_S = 1.0
"""What is said before anything has been completed."""
LONGEST_S = 60.0


class Admission:
    """Counts work inside, in units of cost; for one event loop, not for threads."""

    def __init__(self, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_waiting = max_waiting
        self.inside = 0
        self._clock = clock
        self._busy_s = 0.0
        self._busy_since: float | None = None
        self._completed: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=REMEMBERED)
        """(busy time, cost) of the newest completions. Busy time stands still while nothing is inside."""

    @asynccontextmanager
    async def enter(self, cost: int = 1) -> AsyncIterator[None]:
        """Hold room for `cost` units, or raise Overloaded. A piece too big for the door may enter alone."""
        if self.inside and self.inside + cost > self.max_waiting:
            raise Overloaded(
                f"This server is full: {self.inside} requests are waiting or running. Come back in a moment.",
                retry_after_s=self.wait_s(cost),
            )
        if self._busy_since is None:
            self._busy_since = self._clock()
        self.inside += cost
        try:
            yield
        finally:
            self.inside -= cost
            self._completed.append((self._busy_time(), cost))
            if self.inside == 0:
                self._busy_s, self._busy_since = self._busy_time(), None

    def wait_s(self, cost: int = 1) -> float:
        """Seconds until there is room for `cost`, at the rate measured while busy; 0: there is room."""
        excess = min(self.inside, self.inside + cost - self.max_waiting)
        if excess <= 0:
            return 0.0
        (first, _), *later = self._completed
        done = sum(cost for _, cost in later)
        spent = self._busy_time() - first
        guess = excess * spent / done if done else max(FIRST_GUESS_S, spent)
        return min(LONGEST_S, max(0.05, guess))

    def _busy_time(self) -> float:
        return self._busy_s + (self._clock() - self._busy_since if self._busy_since is not None else 0.0)
