"""A streamed answer under a guard that observes: every byte goes on as it comes, and is judged once all have gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from gateway.guarding.checks import Checks
from gateway.guarding.frames import Piece, read_frames
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
        self._texts: dict[int, list[str]] | None = {}
        """What was read so far of each answer; None: what came is no stream of an Actor."""

    def __aiter__(self) -> ObservedStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            frames = await anext(self._frames)
        except StopAsyncIteration:
            texts = None if self._texts is None else ["".join(parts) for parts in self._texts.values()]
            self._later(partial(judged, texts, self._checks, self._earlier))
            raise
        self._read(frames)
        return frames

    def _read(self, frames: bytes) -> None:
        """As they come, for a long answer that is read at its end holds up everybody."""
        if self._texts is None:
            return
        try:
            for frame in read_frames(frames):
                if isinstance(frame, Piece):
                    self._texts.setdefault(frame.index, []).append(frame.text)
        except Problem:
            self._texts = None

    async def aclose(self) -> None:
        self._texts = None
        await self._frames.aclose()


async def judged(texts: Sequence[str] | None, checks: Checks, earlier: GuardStage | None) -> GuardVerdict:
    """Of the whole reply, as if it had not been streamed; what could not be read is unscored."""
    if texts is None:
        return GuardVerdict.UNSCORED
    found = [] if earlier is None else [await checks.earlier(earlier)]
    if checks.rule.asks(GuardStage.AFTER):
        found += await checks.answers(texts)
    return gravest(found)
