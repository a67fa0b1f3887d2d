"""How many pairs a series may run: as many as asked for, or as end in its share of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Time for all series of a run; without minutes there is no end to it."""

    def __init__(self, minutes: float | None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def pairs(self, share: float, most: int) -> Callable[[int], bool]:
        """Whether to run one more pair, by the number that is done: one at least, `most` at most.

        share: of the time that is left now.
        """
        last = time.monotonic()
        until = None if self.deadline is None else last + share * (self.deadline - last)

        def one_more(done: int) -> bool:
            nonlocal last
            took, last = time.monotonic() - last, time.monotonic()
            in_time = until is None or last + took < until
            return done < most and (done == 0 or in_time)

        return one_more
