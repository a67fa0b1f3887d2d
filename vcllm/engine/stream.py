"""Tokens on their way from the engine's thread to the task that waits for them, where they become text.

They cross to an event loop in one call per step, for all its tasks together. Decoding and stop strings happen
on this side, so the thread never touches text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from vcllm.contracts.chat import ChosenLogprob, Completion, FinishReason, Sampling
from vcllm.engine.logprobs import Logprobs
from vcllm.engine.protocol import Answers, Delta
from vcllm.engine.sampling import TokenReport
from vcllm.engine.scoring import Reading
from vcllm.engine.sequence import Request
from vcllm.engine.sequence import Sequence as Row
from vcllm.engine.text import TextStream

Arrival = tuple[int, list[int], list[TokenReport], FinishReason | None]
"""Index of the answer, its new tokens, what is told about them, and why it ended if it did."""


class LocalGeneration:
    """n answers on their way to one task."""

    def __init__(self, tokenizer: Any, sampling: Sampling, n: int, *, eager: bool) -> None:
        self.sampling = sampling
        self.eager = eager or bool(sampling.stop)
        """Wants every token when it is there; otherwise each answer comes in one piece."""
        self.loop = asyncio.get_running_loop()
        self.request: Request
        """Set by the engine before anything can arrive."""
        self._made = time.monotonic()
        self._handed_over = [0] * n
        """Tokens of each answer that have crossed; only the engine's thread counts here."""
        self._arrived: dict[int, Arrival] = {}
        """By answer, what has come since the task last looked: one that is late has the less to do for each token."""
        self._failure: Exception | None = None
        self._news = asyncio.Event()
        self._texts = [TextStream(tokenizer, sampling.stop) for _ in range(n)]
        self._logprobs = [Logprobs(tokenizer) for _ in range(n)]
        self._num_tokens = [0] * n
        self._num_told = [0] * n
        """Characters of each answer that have been handed on."""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def queue_s(self) -> float:
        return self.request.begun - self._made if self.request.begun is not None else 0.0

    def cancel(self) -> None:
        """Let go of it: its rows are gone before the next step."""
        for row in self.request.sequences:
            row.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Delta]:
        unfinished = set(range(len(self._texts)))
        while unfinished:
            await self._news.wait()
            self._news.clear()
            arrived, self._arrived = self._arrived, {}
            for index, tokens, reports, finish in arrived.values():
                if index not in unfinished:
                    continue  # written before the engine heard of the stop string
                delta = self._delta(index, tokens, reports, finish)
                if delta.finish_reason:
                    unfinished.remove(index)
                if delta.text or delta.finish_reason:
                    yield delta
            if self._failure and unfinished and not self._arrived:
                raise self._failure

    def take(self, row: Row) -> Arrival:
        """In the engine's thread: what has not crossed yet."""
        start = self._handed_over[row.index]
        self._handed_over[row.index] = len(row.tokens)
        return row.index, row.tokens[start:], row.reports[start:], row.finish

    def deliver(self, arrivals: list[Arrival] | Exception) -> None:
        """In the event loop."""
        if isinstance(arrivals, Exception):
            self._failure = arrivals
        else:
            for index, tokens, reports, finish in arrivals:
                _, before, told_before, _ = self._arrived.get(index, (index, [], [], None))
                self._arrived[index] = index, before + tokens, told_before + reports, finish
        self._news.set()

    def _delta(self, index: int, tokens: list[int], reports: list[TokenReport], finish: FinishReason | None) -> Delta:
        text, logprobs = self._texts[index], self._logprobs[index]
        self._num_tokens[index] += len(tokens)
        piece = ""
        for token, told in zip(tokens, reports, strict=bool(reports)):  # one by one: where does its text begin?
            logprobs.push(token, told, text.num_settled)
            piece += text.push([token])
        piece += text.push([] if reports else tokens, last=finish is not None)
        self._num_told[index] += len(piece)
        if text.stopped:
            self.request.sequences[index].cancelled = True
            finish = "stop"
        complete = finish is not None and not text.stopped
        told_logprobs = logprobs.take(None if complete else self._num_told[index])
        return Delta(index, piece, finish, self._num_tokens[index], told_logprobs)


class ReadingDone:
    """Tells one task that its reading has been done."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._result: asyncio.Future[None] = self.loop.create_future()

    async def wait(self) -> None:
        """Raises what stopped it."""
        await self._result

    def cancel(self) -> None:
        """Nobody waits for it any more."""

    def deliver(self, arrivals: list[Arrival] | Exception) -> None:
        """In the event loop."""
        if self._result.done():
            return
        if isinstance(arrivals, Exception):
            self._result.set_exception(arrivals)
        else:
            self._result.set_result(None)


Post = tuple[LocalGeneration | ReadingDone, list[Arrival] | Exception]


def hand_over(changed: Iterable[Row]) -> None:
    """Give every task what is new for it."""
    arrivals: dict[LocalGeneration, list[Arrival]] = {}
    for row in changed:
        generation: LocalGeneration = row.request.owner
        if (row.finish or generation.eager) and not row.cancelled:
            arrivals.setdefault(generation, []).append(generation.take(row))
    _post(arrivals.items())


def report(readings: Iterable[Reading]) -> None:
    """Tell the tasks behind these that their results are there."""
    _post((reading.owner, []) for reading in readings)


def fail(work: Iterable[Request | Reading], error: Exception) -> None:
    """Tell the tasks behind these that nothing more will come."""
    _post((each.owner, error) for each in work)


def _post(posts: Iterable[Post]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Post]] = {}
    for generation, arrivals in posts:
        by_loop.setdefault(generation.loop, []).append((generation, arrivals))
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, batch)
        except RuntimeError:  # the loop is closed: nobody waits any more
            for generation, _ in batch:
                generation.cancel()


def _deliver(posts: list[Post]) -> None:
    for generation, arrivals in posts:
        generation.deliver(arrivals)


async def gather(generation: LocalGeneration, n: int) -> Answers:
    """All pieces of all n answers, put together."""
    pieces: list[list[Delta]] = [[] for _ in range(n)]
    async for delta in generation:
        pieces[delta.index].append(delta)
    told = generation.sampling.logprobs is not None
    completions = [_completion(each, told) for each in pieces]
    return Answers(generation.num_prompt_tokens, completions, generation.queue_s)


def _completion(pieces: list[Delta], told: bool) -> Completion:
    end = pieces[-1]
    assert end.finish_reason is not None, "an answer ends with a reason"
    logprobs: list[ChosenLogprob] = [each for piece in pieces for each in piece.logprobs]
    return Completion(
        text="".join(piece.text for piece in pieces),
        finish_reason=end.finish_reason,
        num_tokens=end.num_tokens,
        logprobs=logprobs if told else None,
    )
