"""The breaker: failures in a row open it, one request tries whether it may close again."""

from __future__ import annotations

import pytest

from vcllm.web.breaker import Breaker, BreakerState


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, cooldown_s=5, longest_s=15, clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.begin()
        breaker.fail()


def test_failures_in_a_row_open_it(breaker: Breaker):
    """Two are not enough; the third one is."""
    fail(breaker, 2)
    assert breaker.allows

    fail(breaker, 1)

    assert not breaker.allows
    assert breaker.state is BreakerState.OPEN


def test_a_success_in_between_starts_the_count_anew(breaker: Breaker):
    """Only failures in a row say that something is wrong for good."""
    fail(breaker, 2)
    breaker.succeed()
    fail(breaker, 2)

    assert breaker.allows


def test_after_the_cooldown_one_request_tries(breaker: Breaker, clock: Clock):
    """While it is under way nobody else is let through."""
    fail(breaker, 3)
    clock.now = 5.0
    assert breaker.allows

    breaker.begin()

    assert breaker.state is BreakerState.TRYING
    assert not breaker.allows


def test_a_try_that_succeeds_closes_it(breaker: Breaker, clock: Clock):
    """And the next opening has the first cooldown again."""
    fail(breaker, 3)
    clock.now = 5.0
    fail(breaker, 1)
    clock.now = 15.0
    breaker.begin()
    breaker.succeed()

    assert breaker.allows
    fail(breaker, 3)
    clock.now = 20.0
    assert breaker.allows


def test_a_try_that_fails_doubles_the_wait_up_to_a_limit(breaker: Breaker, clock: Clock):
    """5 s, then 10, then 15 and no more."""
    fail(breaker, 3)
    waits = []
    for _ in range(4):
        begun = clock.now
        while not breaker.allows:
            clock.now += 1.0
        waits.append(clock.now - begun)
        fail(breaker, 1)

    assert waits == [5.0, 10.0, 15.0, 15.0]


def test_a_try_that_tells_nothing_leaves_the_decision_to_the_next(breaker: Breaker, clock: Clock):
    """Its client left before the answer: that says nothing of the server."""
    fail(breaker, 3)
    clock.now = 5.0
    breaker.begin()
    breaker.give_up()

    assert breaker.state is BreakerState.OPEN
    assert breaker.allows


def test_giving_up_changes_nothing_otherwise(breaker: Breaker):
    """Clients leave closed breakers all the time."""
    for _ in range(10):
        breaker.begin()
        breaker.give_up()

    assert breaker.state is BreakerState.CLOSED


def test_late_failures_do_not_prolong_an_opening(breaker: Breaker, clock: Clock):
    """Requests that were under way when it opened fail after it."""
    fail(breaker, 3)
    clock.now = 4.0
    breaker.fail()
    clock.now = 5.0

    assert breaker.allows
