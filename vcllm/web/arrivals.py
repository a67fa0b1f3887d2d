"""What an iterator has ready, all at once: whoever has fallen behind catches up in one go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MOST = 256
"""Items of one batch; a source that never waits must not keep everybody else waiting."""


async def in_batches(source: AsyncIterable[T]) -> AsyncGenerator[list[T]]:
    """The items of `source` in order: one, and with it whatever else is there without waiting.

    An error comes after the items before it. Closing this cancels `source` where it waits.
    """
    iterator = aiter(source)
    step = _Step(iterator)
    try:
        while True:
            try:
                batch = [await step]
            except StopAsyncIteration:
                return
            step = _Step(iterator)
            while step.ready and len(batch) < MOST:
                batch.append(step.item)
                step = _Step(iterator)
            yield batch
    finally:
        await step.cancel()


class _Step(Generic[T]):
    """The next item: asked for at once, as far as that goes without waiting; awaiting it carries on from there.

    All of it has to happen in one task.
    """

    def __init__(self, iterator: AsyncIterator[T]) -> None:
        self.ready = False
        self.item: T
        """Once `ready`."""
        self._error: BaseException | None = None
        self._waits_for: Any = None
        self._run = iterator.__anext__().__await__()
        self._advance(self._run.send, None)

    def __await__(self) -> Generator[Any, Any, T]:
        while not self.ready:
            if self._error is not None:
                raise self._error
            try:
                sent = yield self._waits_for
            except BaseException as error:
                self._advance(self._run.throw, error)
            else:
                self._advance(self._run.send, sent)
        return self.item

    async def cancel(self) -> None:
        """Have the iterator stop waiting; nothing happens when it does not."""
        if not self.ready and self._error is None:
            self._advance(self._run.throw, asyncio.CancelledError())
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await self

    def _advance(self, resume: Callable[[Any], Any], value: object) -> None:
        """Run until it waits again, has the item, or fails; a failure is for whoever awaits the step."""
        try:
            self._waits_for = resume(value)
        except StopIteration as done:
            self.item, self.ready = done.value, True
        except BaseException as error:
            self._error = error
