"""A streamed chat of an upstream server on its way to one task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import httpx

from vcllm.contracts.chat import ChosenLogprob, FinishReason
from vcllm.contracts.problems import Overloaded, Problem, Unavailable, UpstreamFailed
from vcllm.engine.chunks import Choice, Reply, finish_of, logprobs_of, num_tokens_of, parse_reply, shares
from vcllm.engine.events import EventReader, TooLong
from vcllm.engine.protocol import Delta
from vcllm.engine.upstream import Connection, translated

MAX_EVENT = 4 << 20
"""Bytes of one frame: far more than a token with twenty alternatives takes."""
DONE = b"[DONE]"
REST_S = 1.0
"""How long a server may take to end a stream after saying that it is done; else its connection is not used again."""
CUT_OFF = "The upstream server stopped in the middle of an answer. Try again."


class Answering:
    """The frames of one stream, as pieces of its n answers; does no I/O."""

    def __init__(self, n: int, num_alternatives: int | None) -> None:
        self.num_prompt_tokens = 0
        self.num_alternatives = num_alternatives
        self._num_tokens = [0] * n
        self._untold: list[list[ChosenLogprob]] = [[] for _ in range(n)]
        """Of tokens whose text has not come yet: they began a character."""
        self._finish: dict[int, FinishReason] = {}
        self._completion_tokens: int | None = None

    def take(self, reply: Reply) -> Iterator[Delta]:
        """The pieces in one frame; why an answer ended is told by `end`, when the tokens have been counted."""
        if reply.usage is not None:
            self.num_prompt_tokens = reply.usage.prompt_tokens
            self._completion_tokens = reply.usage.completion_tokens
        for choice in reply.choices:
            if not 0 <= choice.index < len(self._num_tokens):
                raise UpstreamFailed("The upstream server sent an answer that was not asked for.")
            if choice.index not in self._finish:
                yield from self._piece(choice)

    def end(self) -> Iterator[Delta]:
        """The last piece of every answer; Unavailable where one has none."""
        if len(self._finish) < len(self._num_tokens):
            raise Unavailable(CUT_OFF)
        if self._completion_tokens is not None:
            self._num_tokens = shares(self._completion_tokens, self._num_tokens)
        for index, finish in sorted(self._finish.items()):
            yield Delta(index, "", finish, self._num_tokens[index])

    def _piece(self, choice: Choice) -> Iterator[Delta]:
        index, text = choice.index, (choice.delta.content if choice.delta else None) or ""
        self._num_tokens[index] += num_tokens_of(choice) or bool(text)
        self._untold[index] += logprobs_of(choice, self.num_alternatives)
        if text:
            told, self._untold[index] = self._untold[index], []
            yield Delta(index, text, None, self._num_tokens[index], told)
        if choice.finish_reason is not None:
            self._finish[index] = finish_of(choice.finish_reason)


class RemoteGeneration:
    """n answers on their way to one task."""

    queue_s = 0.0
    """Servers do not tell."""

    def __init__(
        self,
        connection: Connection,
        open_stream: Callable[[], Awaitable[httpx.Response]],
        n: int,
        num_alternatives: int | None,
    ) -> None:
        self._connection = connection
        self._open_stream = open_stream
        self._shape = n, num_alternatives
        self._num_asked = 0
        self._answering = Answering(*self._shape)
        self._loop = asyncio.get_running_loop()
        self._response: httpx.Response | None = None
        self._closing: asyncio.Task[None] | None = None
        self._ended_by: Problem | None = None
        self._cancelled = False

    @property
    def num_prompt_tokens(self) -> int:
        """0 until the server tells it, which most do at the end."""
        return self._answering.num_prompt_tokens

    async def begin(self) -> None:
        """Wait until the server takes the request; what it refuses is raised here."""
        await self._connection.patiently(self._open)

    def cancel(self) -> None:
        """Let go of it: the server sees its client leave, and stops."""
        self._cancelled = True
        with suppress(RuntimeError):  # the loop is closed, and the connection with it
            self._loop.call_soon_threadsafe(self._hang_up)

    def fail(self, problem: Problem) -> None:
        """Cancel it, and raise `problem` in the task that waits."""
        self._ended_by = self._ended_by or problem
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        num_failed, handed_on = 0, False
        while not self._cancelled:
            try:
                if self._response is None:
                    await self._open()
                async for delta in self._deltas():
                    handed_on = True
                    yield delta
                return
            except (Overloaded, Unavailable) as problem:
                if self._cancelled:
                    break
                if handed_on or num_failed == self._connection.upstream.num_retries:
                    raise
                await self._connection.pause(problem, num_failed)
                num_failed += 1
        if self._ended_by is not None:
            raise self._ended_by

    async def _open(self) -> None:
        self._answering = Answering(*self._shape)
        self._asks_for(self._shape[0])
        try:
            self._response = await self._open_stream()
        except BaseException:
            self._asks_for(0)
            raise
        if self._cancelled:
            self._hang_up()

    async def _deltas(self) -> AsyncIterator[Delta]:
        async for event in self._events():
            for delta in self._answering.take(parse_reply(event)):
                yield delta
        for delta in self._answering.end():
            yield delta

    async def _events(self) -> AsyncIterator[bytes]:
        """Until the server says that it is done, or just ends."""
        response = self._response
        assert response is not None, "the stream has been opened"
        reader, pieces = EventReader(MAX_EVENT), response.aiter_raw()
        try:
            with translated(self._connection.upstream):
                async for piece in pieces:
                    for event in reader.feed(piece):
                        if event == DONE:
                            await exhaust(pieces)
                            return
                        yield event
            rest = reader.end()
            if rest is not None and rest != DONE:
                yield rest
        except TooLong as error:
            raise UpstreamFailed(f"The upstream server sent a frame that is too long. {error}") from error
        finally:
            self._asks_for(0)
            await response.aclose()
            self._response = None

    def _asks_for(self, num_answers: int) -> None:
        self._connection.num_asked += num_answers - self._num_asked
        self._num_asked = num_answers

    def _hang_up(self) -> None:
        self._asks_for(0)
        if self._response is not None and self._closing is None:
            self._closing = self._loop.create_task(self._response.aclose())


async def exhaust(pieces: AsyncIterator[bytes]) -> None:
    """Read to the end of a stream that is as good as over, so that its connection serves again."""
    with suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(REST_S):
            async for _ in pieces:
                pass
