"""The remote engine: any OpenAI-compatible server behind the `Engine` protocol.

vLLM and SGLang do all that our own engine does; a hosted model answers chats, and says so where more is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from vcllm.contracts.chat import ChatMessage, Completion, Sampling
from vcllm.contracts.problems import BadRequest, NotFound, Unavailable, UpstreamFailed
from vcllm.engine.chunks import (
    Choice,
    Reply,
    chat_body,
    finish_of,
    logprobs_of,
    num_tokens_of,
    parse_reply,
    shares,
)
from vcllm.engine.lora import Adapter, load_adapter
from vcllm.engine.prompts import blank_special_tokens, tokenizer_stop_ids
from vcllm.engine.protocol import Answers, Conversation
from vcllm.engine.remote_scoring import LocalTokens, Read, Tokens, UpstreamTokens, read_texts, total
from vcllm.engine.remote_stream import RemoteGeneration
from vcllm.engine.upstream import NOT_SUPPORTED, Connection, Upstream

CHAT = "/v1/chat/completions"
UNLOADED = "This model version has been unloaded. Ask again."
CLOSE_S = 5.0
"""How long closing waits for connections to be closed."""

T = TypeVar("T")


class RemoteEngine:
    """One model of one upstream server. Used from one event loop, closed from any thread."""

    def __init__(
        self,
        upstream: Upstream,
        model: str,
        *,
        tokenizer: Any = None,
        adapter: Adapter | None = None,
        default_max_tokens: int = 512,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """model: its name there. tokenizer: the model's own, of transformers; None: not known here.

        adapter: loaded again when the server has forgotten it.
        """
        self.upstream = upstream
        self.model = model
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.default_max_tokens = default_max_tokens
        self._on_close = on_close
        self._without_specials = str if tokenizer is None else blank_special_tokens(tokenizer)
        self._stop_ids = [] if tokenizer is None else sorted(tokenizer_stop_ids(tokenizer))
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generations: WeakSet[RemoteGeneration] = WeakSet()
        self._closed = False

    @property
    def num_asked(self) -> int:
        """Answers that the server works on, or has in its own queue."""
        return 0 if self._connection is None else self._connection.num_asked

    async def generate(self, conversation: Conversation, sampling: Sampling, n: int = 1) -> RemoteGeneration:
        """Begin n answers, which the caller must `cancel` in the end; BadRequest when they cannot fit."""
        connection, streamed = self._connect(), {"stream": True, "stream_options": {"include_usage": True}}

        async def ask(body: dict[str, Any]) -> Any:
            return await self._at_hand(lambda: connection.stream(CHAT, body | streamed))

        generation = RemoteGeneration(
            connection, lambda: self._within_context(ask, conversation, sampling, n), n, sampling.logprobs
        )
        self._generations.add(generation)
        await generation.begin()
        return generation

    async def complete(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1) -> list[Answers]:
        """Whole answers to many conversations, in order; number i is seeded with `sampling.seed + i`."""
        return await side_by_side(self._complete(each, seeded(sampling, i), n) for i, each in enumerate(conversations))

    async def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Summed log-probability of each conversation's continuations, as the assistant's next words."""
        pairs = zip(conversations, continuations, strict=True)
        return await side_by_side(self._score(conversation, texts) for conversation, texts in pairs)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """BadRequest: servers that write keep their hidden states to themselves."""
        raise BadRequest(
            "The upstream server of this model does not tell where texts lie. Ask a model that is served from here.",
            code=NOT_SUPPORTED,
        )

    async def read(self, conversation: Conversation, texts: Sequence[str]) -> list[Read | None]:
        """What each text's tokens are to the model behind the conversation; None: the text has none."""
        connection, tokens = self._connect(), self._tokens()
        head = await tokens.prompt(conversation)
        tails = [await tokens.text(text) for text in texts]
        asked = [tail for tail in tails if tail]
        told = iter(await self._at_hand(lambda: read_texts(connection, self.model, head, asked)) if asked else [])
        return [next(told) if tail else None for tail in tails]

    def close(self) -> None:
        """Stop; whatever still runs fails. Not from the event loop."""
        self._closed = True
        if self._loop is not None and self._loop.is_running():
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self.aclose(), self._loop).result(CLOSE_S)
        self._on_close()

    async def aclose(self) -> None:
        """The part of closing that is done in the event loop."""
        self._closed = True
        for generation in list(self._generations):
            generation.fail(Unavailable(UNLOADED))
        if self._connection is not None:
            await self._connection.aclose()

    async def _complete(self, conversation: Conversation, sampling: Sampling, n: int) -> Answers:
        connection = self._connect()

        async def ask(body: dict[str, Any]) -> bytes:
            return await self._at_hand(lambda: connection.post(CHAT, body, answers=n))

        reply = parse_reply(await self._within_context(ask, conversation, sampling, n))
        return answers_of(reply, sampling, n)

    async def _score(self, conversation: Conversation, texts: Sequence[str]) -> list[float]:
        return [0.0 if read is None else total(read) for read in await self.read(conversation, texts)]

    async def _within_context(
        self, ask: Callable[[dict[str, Any]], Awaitable[T]], conversation: Conversation, sampling: Sampling, n: int
    ) -> T:
        """Ask for answers. Our default length is none of the caller's: where it does not fit, what fits is taken."""
        if sampling.max_tokens is not None:
            return await ask(self._body(conversation, sampling, n, sampling.max_tokens))
        try:
            return await ask(self._body(conversation, sampling, n, self.default_max_tokens))
        except BadRequest as problem:
            if problem.param != "max_tokens" and problem.code != "context_length_exceeded":
                raise
            return await ask(self._body(conversation, sampling, n, None))

    def _body(self, conversation: Conversation, sampling: Sampling, n: int, max_tokens: int | None) -> dict[str, Any]:
        # A user's text must not be able to end its own turn, and servers read special tokens in it as what they are.
        messages = [ChatMessage(role=each.role, content=self._without_specials(each.content)) for each in conversation]
        return chat_body(
            self.upstream, self.model, messages, sampling, n, max_tokens=max_tokens, stop_ids=self._stop_ids
        )

    async def _at_hand(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result; an adapter that the server has forgotten, as a new start makes it, is loaded again."""
        try:
            return await call()
        except NotFound:
            if self.adapter is None:
                raise
            await load_adapter(self._connect(), self.adapter)
            return await call()

    def _tokens(self) -> Tokens:
        if self.tokenizer is not None:
            return LocalTokens(self.tokenizer)
        if self.upstream.dialect == "vllm":
            return UpstreamTokens(self._connect(), self.model)
        raise BadRequest(
            "Scoring needs the model's tokenizer, which neither this server nor its upstream has.", code=NOT_SUPPORTED
        )

    def _connect(self) -> Connection:
        if self._closed:
            raise Unavailable(UNLOADED)
        if self._connection is None:
            self._connection, self._loop = Connection(self.upstream), asyncio.get_running_loop()
        return self._connection


async def side_by_side(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first failure, or being cancelled, ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]


def seeded(sampling: Sampling, offset: int) -> Sampling:
    if sampling.seed is None or not offset:
        return sampling
    return sampling.model_copy(update={"seed": sampling.seed + offset})


def answers_of(reply: Reply, sampling: Sampling, n: int) -> Answers:
    """The n answers of a whole reply, with the tokens of each, as far as the server tells them apart."""
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(n)):
        raise UpstreamFailed(f"The upstream server was asked for {n} answers and sent {len(choices)}.")
    counts = [num_tokens_of(choice) or len(text_of(choice)) for choice in choices]
    if reply.usage is not None and reply.usage.completion_tokens is not None:
        counts = shares(reply.usage.completion_tokens, counts)
    return Answers(
        num_prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
        completions=[completion(choice, sampling, count) for choice, count in zip(choices, counts, strict=True)],
    )


def completion(choice: Choice, sampling: Sampling, num_tokens: int) -> Completion:
    if choice.finish_reason is None:
        raise UpstreamFailed("The upstream server does not say why an answer ended.")
    text, finish = text_of(choice), finish_of(choice.finish_reason)
    logprobs = logprobs_of(choice, sampling.logprobs)
    if logprobs and finish == "stop" and not sampling.stop and not text.endswith(logprobs[-1].token):
        logprobs.pop()  # of the token that ended the answer, which is no part of its text
    return Completion(
        text=text,
        finish_reason=finish,
        num_tokens=num_tokens,
        logprobs=None if sampling.logprobs is None else logprobs,
    )


def text_of(choice: Choice) -> str:
    return (choice.message.content if choice.message else None) or ""
