"""A streamed answer under a guard that enforces: what goes on has been judged, what has not been judged waits.

The Actor writes on while checks run. Everything that happens is one event after the other on a queue, so that what is
shown depends on their order alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.guarding.checks import Checks
from gateway.guarding.frames import (
    NOT_OURS,
    Broken,
    Counted,
    End,
    Frame,
    Piece,
    RefusalWriter,
    Tail,
    with_verdict,
)
from gateway.guarding.holdback import HoldBack, Span
from gateway.guarding.opinions import Look, gravest
from gateway.quotas.billing import Bill
from vcllm.contracts.chat import ChatRequest
from vcllm.contracts.guard import GuardStage, GuardVerdict
from vcllm.contracts.problems import UpstreamFailed
from vcllm.web.sse import DONE

Event = Callable[[], bytes]
"""Something that happened; calling it gives what it lets through."""
Work = Callable[[], Coroutine[Any, Any, Event | None]]
BEFORE_REFUSAL = "\n\n"
"""Between text that was shown and the refusal."""
CUT_SHORT = "The answer ended before it was complete. Ask again."


@dataclass(eq=False)
class Answer:
    """One choice of the stream."""

    held: HoldBack
    verdict: GuardVerdict = GuardVerdict.PASS
    """The gravest so far."""
    looked_at: tuple[Span, Look] | None = None
    """The last check."""
    busy: bool = False
    """A check runs."""
    passed: bool = False
    """All of it may be shown."""
    over: bool = False
    """Its last frame was given out."""


class GuardedStream:
    """The frames of one reply. Closing it ends every check and lets go of the Actor."""

    def __init__(
        self,
        checks: Checks,
        wanted: ChatRequest,
        frames: AsyncIterator[Frame],
        bill: Bill,
        prompt_tokens: int,
        held: AsyncExitStack,
        *,
        earlier: GuardVerdict = GuardVerdict.PASS,
        beside: Awaitable[GuardVerdict] | None = None,
        done: Callable[[GuardVerdict], None] = lambda _: None,
    ) -> None:
        """prompt_tokens: a guess, for a usage that the Actor does not come to tell.

        earlier: of earlier answers, judged before. beside: finds that out; nothing is shown until then.
        done: told the verdict of the whole reply, at its end.
        """
        self._checks = checks
        # What is told of tokens may be ahead of the text by a part of a character: it is shown with the whole only.
        hold = "whole" if wanted.logprobs else checks.rule.policy.hold_back
        self._answers = [Answer(HoldBack(hold)) for _ in range(wanted.n)]
        self._judges = checks.rule.asks(GuardStage.AFTER)
        self._bill = bill
        self._prompt_tokens = prompt_tokens
        self._held = held
        self._done = done
        self._write = RefusalWriter(wanted.model, wanted.stream_options.include_usage)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._earlier: GuardVerdict | None = earlier if beside is None else None
        """Of earlier answers; None: it is not known yet."""
        self._usage = b""
        """The Actor's own frame with it."""
        self._ended = False
        """The Actor has written everything."""
        self._broken = False
        """It has said that it cannot."""
        self._beside = beside
        self._actor = frames
        self._frames = self._make()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._frames

    async def aclose(self) -> None:
        """Safe at any time, also before the first frame and after the last."""
        await self._frames.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._held.aclose()

    async def _make(self) -> AsyncGenerator[bytes]:
        self._start(self._read)
        if self._beside is not None:
            self._start(partial(self._hear, self._beside))
        while not self._is_over:
            event = await self._events.get()
            if frames := event():
                yield frames
        if not self._broken:
            self._done(self._verdict)
            yield self._end()

    # What happens: the Actor writes, and checks come to their end.

    def _start(self, work: Work) -> None:
        """What it brings, or raises, is an event."""
        task = asyncio.create_task(self._queue(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _queue(self, work: Work) -> None:
        try:
            event = await work()
        except Exception as error:
            event = partial(_throw, error)
        if event is not None:
            self._events.put_nowait(event)

    async def _read(self) -> Event | None:
        complete = False
        async for frame in self._actor:
            self._events.put_nowait(partial(self._take, frame))
            complete = complete or isinstance(frame, End | Broken)
        return None if complete else partial(_throw, UpstreamFailed(CUT_SHORT))

    async def _hear(self, beside: Awaitable[GuardVerdict]) -> Event:
        return partial(self._cleared, await beside)

    async def _look(self, answer: Answer, span: Span, text: str) -> Event:
        return partial(self._judged, answer, span, await self._checks.look_at(text))

    # What each event lets through.

    def _take(self, frame: Frame) -> bytes:
        match frame:
            case Piece():
                return self._piece(frame)
            case Tail():
                self._usage = frame.raw
            case Counted():
                self._bill.settle(frame.tokens)
            case End():
                self._ended = True
                if not all(answer.over or answer.held.finished for answer in self._answers):
                    raise UpstreamFailed(CUT_SHORT)
            case Broken():
                self._broken = True
                return frame.raw
        return b""

    def _piece(self, piece: Piece) -> bytes:
        self._bill.num_frames += bool(piece.text)
        self._write.head = piece.head
        answer = self._answers[piece.index] if 0 <= piece.index < len(self._answers) else None
        if answer is None or answer.held.finished:
            raise UpstreamFailed(NOT_OURS)
        if answer.over:
            return b""
        answer.held.take(piece.raw, piece.text, finished=piece.finished, tells=piece.tells)
        return self._advance(answer)

    def _cleared(self, verdict: GuardVerdict) -> bytes:
        """The check of earlier answers has come to its end."""
        self._earlier = verdict
        if verdict.blocks:
            return b"".join(self._refuse(answer, verdict) for answer in self._answers)
        return b"".join(map(self._advance, self._answers))

    def _judged(self, answer: Answer, span: Span, looked: Look) -> bytes:
        answer.busy, answer.looked_at = False, (span, looked)
        if answer.over:
            return b""
        verdict = self._checks.verdict(looked, span.complete)
        answer.verdict = gravest((answer.verdict, verdict))
        if verdict.blocks:
            return self._refuse(answer, verdict)
        self._accept(answer, span)
        return self._advance(answer)

    def _accept(self, answer: Answer, span: Span) -> None:
        answer.held.cover(span)
        answer.passed = span.complete

    def _advance(self, answer: Answer) -> bytes:
        """Have checked what is due, and give out what may be shown."""
        if answer.over:
            return b""
        if not self._judges:
            self._accept(answer, answer.held.all)
        elif (span := None if answer.passed or answer.busy else answer.held.due) is not None:
            text = answer.held.text[: span.end]
            if not text.strip():
                self._accept(answer, span)
            elif answer.looked_at is not None and answer.looked_at[0].end == span.end:
                # It was judged as the beginning of an answer, and turns out to be all of it.
                return self._judged(answer, span, answer.looked_at[1])
            else:
                answer.busy = True
                self._start(partial(self._look, answer, span, text))
        return b"" if self._earlier is None else self._release(answer, self._earlier)

    def _release(self, answer: Answer, earlier: GuardVerdict) -> bytes:
        frames = answer.held.release(complete=answer.passed)
        if not answer.passed:
            return frames
        answer.over = True
        return with_verdict(frames, self._checks.told(gravest((answer.verdict, earlier))))

    def _refuse(self, answer: Answer, verdict: GuardVerdict) -> bytes:
        """Nothing more of the answer is shown, and nothing of it is kept."""
        if answer.over:
            return b""
        answer.verdict, answer.over = gravest((answer.verdict, verdict)), True
        number, shown = self._answers.index(answer), answer.held.shown
        role = b"" if answer.held.begun else self._write.role(number)
        answer.held.drop()
        text = (BEFORE_REFUSAL if shown else "") + self._checks.refusal
        return role + self._write.refusal(number, text, self._checks.told(verdict))

    # The end.

    @property
    def _is_over(self) -> bool:
        """Where something was blocked, the Actor need not come to its end."""
        over = all(answer.over for answer in self._answers)
        return self._broken or (over and (self._ended or self._verdict.blocks))

    @property
    def _verdict(self) -> GuardVerdict:
        return gravest((self._earlier or GuardVerdict.PASS, *(answer.verdict for answer in self._answers)))

    def _end(self) -> bytes:
        """With the usage where it was asked for: the Actor's own, or what the bill says of an answer that was left."""
        self._bill.close()  # before the last byte goes out, as without a guard
        if self._ended:
            return self._usage + DONE
        return self._write.usage(self._prompt_tokens, self._bill.num_frames) + DONE


def _throw(error: Exception) -> bytes:
    raise error
