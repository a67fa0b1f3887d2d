"""A streamed answer under a guard that observes: every byte goes on as it comes, and is judged once all have gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from gateway.guarding.checks import Checks
from gateway.guarding.frames import Frame, Piece, read_frames
from gateway.guarding.opinions import gravest
from vcllm.contracts.guard import GuardStage, GuardVerdict
from vcllm.contracts.problems import Problem

Later = Callable[[Callable[[], Coroutine[Any, Any, GuardVerdict]]], None]


class Closable(Protocol):
    """A stream of whole frames."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...


class ObservedStream:
    """See above. A stream that its client leaves is not judged."""

    def __init__(self, frames: Closable, checks: Checks, earlier: GuardStage | None, later: Later) -> None:
        """earlier: the stage in which earlier answers are judged; None: they are not. later: told once, at the end."""
        self._frames = frames
        self._checks = checks
        self._earlier = earlier
        self._later = later
        self._seen: list[bytes] = []

    def __aiter__(self) -> ObservedStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            frames = await anext(self._frames)
        except StopAsyncIteration:
            seen, self._seen = b"".join(self._seen), []
            self._later(partial(judged, seen, self._checks, self._earlier))
            raise
        self._seen.append(frames)
        return frames

    async def aclose(self) -> None:
        self._seen = []
        await self._frames.aclose()


async def judged(seen: bytes, checks: Checks, earlier: GuardStage | None) -> GuardVerdict:
    """Of the whole reply, as if it had not been streamed; what is no stream of an Actor is unscored."""
    try:
        frames = list(read_frames(seen))
    except Problem:
        return GuardVerdict.UNSCORED
    found = [] if earlier is None else [await checks.earlier(earlier)]
    if checks.rule.asks(GuardStage.AFTER):
        found += await checks.answers(texts_of(frames))
    return gravest(found)


def texts_of(frames: Sequence[Frame]) -> list[str]:
    """Of each answer."""
    texts: dict[int, list[str]] = {}
    for frame in frames:
        if isinstance(frame, Piece):
            texts.setdefault(frame.index, []).append(frame.text)
    return ["".join(parts) for parts in texts.values()]
