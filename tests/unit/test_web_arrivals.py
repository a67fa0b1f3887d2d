"""What has piled up comes in one batch; errors, ends and cancellation are those of the source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from vcllm.web.arrivals import MOST, in_batches


async def queued(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Items of a queue; an exception in it is raised, None is the end."""
    while (item := await queue.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item


def run(scene: Callable[[asyncio.Queue[Any]], Awaitable[Any]]) -> Any:
    async def play() -> Any:
        return await asyncio.wait_for(scene(asyncio.Queue()), 5)

    return asyncio.run(play())


def put(queue: asyncio.Queue[Any], *items: Any) -> None:
    for item in items:
        queue.put_nowait(item)


def test_what_is_there_comes_together_and_what_is_not_is_waited_for():
    """In order, nothing lost, nothing twice."""

    async def scene(queue: asyncio.Queue[Any]) -> list[list[int]]:
        put(queue, 1, 2, 3)
        later = asyncio.get_running_loop()
        later.call_later(0.02, put, queue, 4)
        later.call_later(0.04, put, queue, 5, 6, None)
        return [batch async for batch in in_batches(queued(queue))]

    assert run(scene) == [[1, 2, 3], [4], [5, 6]]


def test_what_comes_while_a_batch_is_used_waits_for_the_next():
    """The step that was begun for it is carried on."""

    async def scene(queue: asyncio.Queue[Any]) -> list[list[int]]:
        batches = []
        put(queue, 1)
        async for batch in in_batches(queued(queue)):
            batches.append(batch)
            if len(batches) == 1:
                put(queue, 2, 3, None)
                await asyncio.sleep(0.01)
        return batches

    assert run(scene) == [[1], [2, 3]]


def test_an_error_comes_after_the_items_before_it():
    """And only once they have been taken."""

    async def scene(queue: asyncio.Queue[Any]) -> list[list[int]]:
        put(queue, 1, 2, ValueError("broken"))
        batches = []
        with pytest.raises(ValueError, match="broken"):
            async for batch in in_batches(queued(queue)):
                batches.append(batch)
        return batches

    assert run(scene) == [[1, 2]]


def test_an_empty_source_gives_nothing():
    """Not even an empty batch."""

    async def scene(queue: asyncio.Queue[Any]) -> list[list[int]]:
        put(queue, None)
        return [batch async for batch in in_batches(queued(queue))]

    assert run(scene) == []


def test_a_source_that_never_waits_is_cut_into_batches():
    """So that others get their turn."""

    async def scene(queue: asyncio.Queue[Any]) -> list[int]:
        put(queue, *range(1, 2 * MOST), None)
        return [len(batch) async for batch in in_batches(queued(queue))]

    assert run(scene) == [MOST, MOST - 1]


async def cleaning_up(log: list[str]) -> AsyncIterator[int]:
    """One item, then a wait that notes how it ended, after a cleanup that waits, too."""
    yield 1
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
        log.append("cancelled")
        raise


def test_closing_cancels_the_source_where_it_waits():
    """Its own cleanup has ended when closing has."""
    log: list[str] = []

    async def scene(_: asyncio.Queue[Any]) -> list[int]:
        async with aclosing(in_batches(cleaning_up(log))) as batches:
            return await anext(batches)

    assert run(scene) == [1]
    assert log == ["cancelled"]


def test_a_cancelled_task_cancels_the_source():
    """As if it had waited for the source itself."""
    log: list[str] = []

    async def consume() -> None:
        async for _ in in_batches(cleaning_up(log)):
            pass

    async def scene(_: asyncio.Queue[Any]) -> bool:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait((task,))
        return task.cancelled()

    assert run(scene) is True
    assert log == ["cancelled"]
