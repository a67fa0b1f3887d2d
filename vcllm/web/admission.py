"""A bounded door: so many answers, and tokens for them, may be inside; the rest is told when to come back.

Once full it stays closed until an eighth of it is free. So a wait is the time many pieces of work take to leave,
which can be foretold; that of a single one cannot.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vcllm.contracts.problems import Overloaded

GAP = 8
"""One part in so many must be free before a door that was full opens again."""
REMEMBERED = 64
"""Spans the pace is measured over."""
SPAN_S = 0.05
"""Shortest span: what is computed together leaves together, which says nothing about the pace."""
FIRST_GUESS_S = 1.0
"""What is said before anything has left."""
SHORTEST_S, LONGEST_S = 0.05, 60.0
DEADLINE_UNREACHABLE = "deadline_unreachable"


@dataclass(slots=True)
class Bound:
    """One thing that is counted at the door."""

    limit: int
    inside: int = 0

    @property
    def gap(self) -> int:
        return max(1, self.limit // GAP)

    def fits(self, cost: int) -> bool:
        return self.inside + cost <= self.limit

    def excess(self, cost: int) -> int:
        """What must leave before the door is open again and `cost` fits; at most everything."""
        open_at = min(self.limit - self.gap, self.limit - cost)
        return max(0, self.inside - max(0, open_at))


@dataclass(eq=False, slots=True)
class Entry:
    """Room that is held inside."""

    door: Admission
    answers: int
    tokens: int
    since: float
    """When it entered, by the door's clock."""

    def correct(self, tokens: int) -> None:
        """Say what it needs, now that it is known; refused it is no more."""
        self.door.tokens.inside += tokens - self.tokens
        self.tokens = tokens


class Admission:
    """Counts work inside; for one event loop, not for threads."""

    def __init__(
        self,
        max_answers: int,
        max_tokens: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        running: Callable[[], int] = lambda: 0,
    ) -> None:
        """max_tokens: None: tokens are not counted. running: how many of the answers inside have begun."""
        self.answers = Bound(max_answers)
        self.tokens = Bound(max_tokens or 2**62)
        self.refused: Counter[str] = Counter()
        """Refusals since the start, by reason: a closed vocabulary."""
        self.closed = False
        """It was full, and not enough has left since."""
        self._clock = clock
        self._running = running
        self._busy, self._crowded = Pace(clock), Pace(clock)
        """While anything is inside, and while the door is at least half full: only then the pace is the fastest."""

    @property
    def inside(self) -> int:
        """Answers that wait or run."""
        return self.answers.inside

    @property
    def waiting(self) -> int:
        """Answers inside that have not begun."""
        return max(0, self.answers.inside - self._running())

    @asynccontextmanager
    async def enter(self, answers: int = 1, tokens: int = 0) -> AsyncIterator[Entry]:
        """Hold room, or raise Overloaded. A piece too big for the door may enter alone."""
        self.check(answers, tokens)
        entry = Entry(self, answers, tokens, self._clock())
        self._count(answers, tokens)
        try:
            yield entry
        finally:
            for pace in (self._busy, self._crowded):
                pace.note(entry.answers, entry.tokens)
            self._count(-entry.answers, -entry.tokens)

    def check(self, answers: int = 1, tokens: int = 0) -> None:
        """Overloaded when there is no room; costs next to nothing, so it may be asked before a request is read."""
        wait_s = self.wait_s(answers, tokens)
        if not wait_s:
            return
        if answers <= self.answers.gap and tokens <= self.tokens.gap:
            self.closed = True  # a larger piece must not keep the small ones out
        full = self.answers.excess(answers) > 0
        self.refused["answers" if full else "tokens"] += 1
        holds = f"{self.inside} requests" if full else f"requests for {self.tokens.inside} tokens"
        raise Overloaded(
            f"This server is full: {holds} are waiting or running. Come back in a moment.", retry_after_s=wait_s
        )

    def check_deadline(self, within_s: float) -> None:
        """Overloaded when what enters now will probably not begin within so many seconds."""
        begins_s = self.begins_in_s()
        if begins_s <= within_s:
            return
        self.refused["deadline"] += 1
        raise Overloaded(
            f"This request would begin in about {begins_s:.1f} s, after its deadline. Come back, or wait longer.",
            code=DEADLINE_UNREACHABLE,
            retry_after_s=bounded(begins_s - within_s),
        )

    def wait_s(self, answers: int = 1, tokens: int = 0) -> float:
        """Seconds until there is room, at the pace measured so far; 0: there is room."""
        if not self.inside:
            return 0.0
        if not self.closed and self.answers.fits(answers) and self.tokens.fits(tokens):
            return 0.0
        pace = self._crowded if self._crowded.known else self._busy
        return bounded(pace.seconds_for(self.answers.excess(answers), self.tokens.excess(tokens)))

    def begins_in_s(self) -> float:
        """Seconds until what enters now is likely to begin; 0 as long as no pace is known."""
        waiting = self.waiting
        paces = [pace for pace in (self._busy, self._crowded) if pace.known]
        return min((pace.seconds_for(waiting, 0) for pace in paces), default=0.0)

    def _count(self, answers: int, tokens: int) -> None:
        self.answers.inside += answers
        self.tokens.inside += tokens
        if self.answers.excess(0) == 0 == self.tokens.excess(0):
            self.closed = False
        self._busy.run(self.inside > 0)
        self._crowded.run(any(bound.inside * 2 >= bound.limit for bound in (self.answers, self.tokens)))


class Pace:
    """How fast work leaves, by a clock that only runs while it is told to."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ran_s = 0.0
        self._since: float | None = None
        self._answers = self._tokens = 0
        self._marks: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)], maxlen=REMEMBERED)
        """(time run, answers, tokens) up to the ends of the newest spans."""

    @property
    def known(self) -> bool:
        return self._answers > self._marks[0][1]

    def run(self, on: bool) -> None:
        """Start or stop the clock."""
        if on and self._since is None:
            self._since = self._clock()
        elif not on and self._since is not None:
            self._ran_s, self._since = self._time_s(), None

    def note(self, answers: int, tokens: int) -> None:
        """So much has left; not counted while the clock stands still."""
        if self._since is None:
            return
        self._answers += answers
        self._tokens += tokens
        if self._time_s() >= self._marks[-1][0] + SPAN_S:
            self._marks.append((self._time_s(), self._answers, self._tokens))

    def seconds_for(self, answers: int, tokens: int) -> float:
        """How long so much takes to leave."""
        began, answers_before, tokens_before = self._marks[0]
        spent = self._time_s() - began
        left = (self._answers - answers_before, self._tokens - tokens_before)
        slowest = 0.0
        for wanted, done in zip((answers, tokens), left, strict=True):
            if wanted:
                slowest = max(slowest, wanted * spent / done if done else max(FIRST_GUESS_S, spent))
        return slowest

    def _time_s(self) -> float:
        return self._ran_s + (self._clock() - self._since if self._since is not None else 0.0)


def bounded(wait_s: float) -> float:
    """A wait that can be told."""
    return min(LONGEST_S, max(SHORTEST_S, wait_s))
