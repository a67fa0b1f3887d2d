"""Tokens on their way from the engine's thread to the task that waits for them, where they become text.

They cross to an event loop in one call per step, for all its tasks together. Decoding and stop strings happen
on this side, so the thread never touches text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from vcllm.contracts.chat import Completion, FinishReason, Sampling
from vcllm.engine.protocol import Answers, Delta
from vcllm.engine.sequence import Request
from vcllm.engine.sequence import Sequence as Row
from vcllm.engine.text import TextStream

Arrival = tuple[int, list[int], FinishReason | None]
"""Index of the answer, its new tokens, and why it ended if it did."""


class LocalGeneration:
    """n answers on their way to one task."""

    def __init__(self, tokenizer: Any, sampling: Sampling, n: int, *, eager: bool) -> None:
        self.eager = eager or bool(sampling.stop)
        """Wants every token when it is there; otherwise each answer comes in one piece."""
        self.loop = asyncio.get_running_loop()
        self.request: Request
        """Set by the engine before anything can arrive."""
        self._made = time.monotonic()
        self._handed_over = [0] * n
        """Tokens of each answer that have crossed; only the engine's thread counts here."""
        self._arrivals: asyncio.Queue[list[Arrival] | Exception] = asyncio.Queue()
        self._texts = [TextStream(tokenizer, sampling.stop) for _ in range(n)]
        self._num_tokens = [0] * n

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
            arrivals = await self._arrivals.get()
            if isinstance(arrivals, Exception):
                raise arrivals
            for index, tokens, finish in arrivals:
                if index not in unfinished:
                    continue  # written before the engine heard of the stop string
                delta = self._delta(index, tokens, finish)
                if delta.finish_reason:
                    unfinished.remove(index)
                if delta.text or delta.finish_reason:
                    yield delta

    def take(self, row: Row) -> Arrival:
        """In the engine's thread: what has not crossed yet."""
        new = row.tokens[self._handed_over[row.index] :]
        self._handed_over[row.index] += len(new)
        return row.index, new, row.finish

    def deliver(self, arrivals: list[Arrival] | Exception) -> None:
        """In the event loop."""
        self._arrivals.put_nowait(arrivals)

    def _delta(self, index: int, tokens: list[int], finish: FinishReason | None) -> Delta:
        text = self._texts[index]
        self._num_tokens[index] += len(tokens)
        piece = text.push(tokens, last=finish is not None)
        if text.stopped:
            self.request.sequences[index].cancelled = True
            finish = "stop"
        return Delta(index, piece, finish, self._num_tokens[index])


Post = tuple[LocalGeneration, list[Arrival] | Exception]


def hand_over(changed: Iterable[Row]) -> None:
    """Give every task what is new for it."""
    arrivals: dict[LocalGeneration, list[Arrival]] = {}
    for row in changed:
        generation: LocalGeneration = row.request.owner
        if (row.finish or generation.eager) and not row.cancelled:
            arrivals.setdefault(generation, []).append(generation.take(row))
    _post(arrivals.items())


def fail(requests: Iterable[Request], error: Exception) -> None:
    """Tell the tasks behind these requests that nothing more will come."""
    _post((request.owner, error) for request in requests)


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
    texts, ends = [""] * n, dict[int, Delta]()
    async for delta in generation:
        texts[delta.index] += delta.text
        if delta.finish_reason:
            ends[delta.index] = delta
    completions = [_completion(texts[i], ends[i]) for i in range(n)]
    return Answers(generation.num_prompt_tokens, completions, generation.queue_s)


def _completion(text: str, end: Delta) -> Completion:
    assert end.finish_reason is not None, "an answer ends with a reason"
    return Completion(text=text, finish_reason=end.finish_reason, num_tokens=end.num_tokens)
