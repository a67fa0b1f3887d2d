"""Work for a client that has gone is stopped, not finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first (then: ClientDisconnect).

    The request's body must have been read before. `work` has ended when this returns, whichever way.
    """
    async with while_there(request.receive):
        return await work


@asynccontextmanager
async def while_there(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client goes away (then: ClientDisconnect).

    The request's body must have been read before. The block stays in its task.
    """
    task = asyncio.current_task()
    assert task is not None, "runs in a task"
    gone = False

    def leave(watch: asyncio.Future[None]) -> None:
        nonlocal gone
        if not watch.cancelled():
            gone = True
            task.cancel()

    watch = asyncio.ensure_future(disconnected(receive))
    watch.add_done_callback(leave)
    try:
        try:
            yield
        finally:
            if gone:  # it was cancelled, and may not have heard of it yet
                await asyncio.sleep(0)
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watch.remove_done_callback(leave)
        watch.cancel()


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(leaving: Coroutine[Any, Any, None], work: Awaitable[T]) -> T:
    """The result of `work`; when `leaving` returns first, `work` is cancelled (then: ClientDisconnect).

    Cancelled once, as asyncio does it, so it may still await while it cleans up.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(leaving)
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _stop(gone)
        await _stop(task)


async def _stop(task: asyncio.Future[T]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
