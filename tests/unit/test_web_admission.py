"""The door: what it holds, when it opens again, and whether the waits it tells are true."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from vcllm.contracts.problems import Overloaded
from vcllm.web.admission import Admission


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def fill(door: Admission, stack: AsyncExitStack, number: int) -> None:
    for _ in range(number):
        await stack.enter_async_context(door.enter())


def test_tokens_are_bounded_like_answers() -> None:
    """A few long requests fill the door as many short ones do, and the refusal says which it was."""

    async def run() -> None:
        door = Admission(100, 1000)
        async with door.enter(1, 900):
            with pytest.raises(Overloaded, match="900 tokens"):
                await door.enter(1, 200).__aenter__()
        assert (door.tokens.inside, door.refused) == (0, {"tokens": 1})

    asyncio.run(run())


def test_a_corrected_guess_makes_room() -> None:
    """What was guessed is given back as it was corrected, neither more nor less."""

    async def run() -> None:
        door = Admission(100, 1000)
        async with door.enter(1, 900) as entry:
            entry.correct(300)
            async with door.enter(1, 700):
                assert door.tokens.inside == 1000
        assert door.tokens.inside == 0

    asyncio.run(run())


def test_a_full_door_stays_closed_until_an_eighth_is_free() -> None:
    """Otherwise everybody would be told to come back for the one place that the first to come takes."""

    async def run() -> list[bool]:
        door, opened = Admission(16), []
        async with AsyncExitStack() as others:
            await fill(door, others, 14)
            async with door.enter():
                async with door.enter():
                    assert door.wait_s() > 0
                    with pytest.raises(Overloaded):
                        door.check()
                opened.append(door.wait_s() == 0)
            opened.append(door.wait_s() == 0)
        return opened

    assert asyncio.run(run()) == [False, True]


def test_a_large_piece_does_not_keep_small_ones_out() -> None:
    """It is refused by itself; whoever fits still comes in."""

    async def run() -> None:
        door = Admission(16)
        async with AsyncExitStack() as others:
            await fill(door, others, 10)
            with pytest.raises(Overloaded):
                door.check(answers=8)
            door.check()

    asyncio.run(run())


@pytest.mark.parametrize("light_s", [0, 60], ids=["fresh", "after a quiet minute"])
def test_under_four_times_the_load_the_told_wait_is_true(light_s: float) -> None:
    """Simulated: answers of random length on 32 rows; nine of ten waits are within half of the true one."""
    told_and_true = asyncio.run(simulate(light_s))

    right = [0.5 <= told / true <= 1.5 for told, true in told_and_true]
    assert len(right) > 200
    assert sum(right) / len(right) > 0.9


async def simulate(light_s: float) -> list[tuple[float, float]]:
    """Told and true wait of those who were refused and waited noticeably; 20 ms are one step of the engine."""
    chance, clock, rows = random.Random(3), Clock(), list[float]()
    door = Admission(256, clock=clock, running=lambda: min(32, len(rows)))
    inside: list[tuple[float, AsyncExitStack]] = []
    refused: list[tuple[float, float]] = []
    found: list[tuple[float, float]] = []
    capacity = 32 / 0.5
    while clock.now < light_s + 20:
        clock.now += 0.02
        rows = [end for end in rows if end > clock.now]
        for end, stack in [each for each in inside if each[0] <= clock.now]:
            inside.remove((end, stack))
            await stack.aclose()
        if door.wait_s() == 0:
            found += [(told, clock.now - at) for at, told in refused if clock.now - at >= 0.1]
            refused.clear()
        rate = 4 * capacity if clock.now >= light_s else 5
        for _ in range(poisson(chance, 0.02 * rate)):
            try:
                stack = AsyncExitStack()
                await stack.enter_async_context(door.enter())
            except Overloaded as problem:
                assert problem.retry_after_s is not None
                refused.append((clock.now, problem.retry_after_s))
                continue
            begin = clock.now if len(rows) < 32 else sorted(rows)[-32]
            rows.append(begin + chance.uniform(0.25, 0.75))
            inside.append((rows[-1], stack))
    for _, stack in inside:
        await stack.aclose()
    return found


def poisson(chance: random.Random, mean: float) -> int:
    """How many arrive where `mean` do on the average."""
    number, left = 0, chance.expovariate(1)
    while left < mean:
        number, left = number + 1, left + chance.expovariate(1)
    return number


def test_who_cannot_begin_in_time_is_refused_at_once() -> None:
    """Ten per second leave and thirty wait: a deadline of two seconds is out of reach, one of four is not."""

    async def run() -> None:
        clock = Clock()
        door = Admission(64, clock=clock, running=lambda: 2)
        async with AsyncExitStack() as line:
            await fill(door, line, 32)
            for _ in range(20):
                async with door.enter():
                    clock.now += 0.1
            with pytest.raises(Overloaded) as refused:
                door.check_deadline(2)
            door.check_deadline(4)
        assert refused.value.code == "deadline_unreachable"
        assert refused.value.retry_after_s == pytest.approx(1, rel=0.1)

    asyncio.run(run())


def test_before_any_pace_is_known_no_deadline_is_out_of_reach() -> None:
    """A guess would turn away the first users of a new server."""

    async def run() -> None:
        door = Admission(64)
        async with AsyncExitStack() as line:
            await fill(door, line, 32)
            door.check_deadline(0.1)

    asyncio.run(run())
