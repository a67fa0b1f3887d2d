"""Log-probabilities that an upstream server reads off texts it is given as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from vcllm.contracts.problems import BadRequest, UpstreamFailed
from vcllm.engine.chunks import Part, parse
from vcllm.engine.prompts import encode, prompt_text
from vcllm.engine.protocol import Conversation
from vcllm.engine.upstream import NOT_SUPPORTED, Connection

NO_SCORES = "The upstream server of this model does not tell the log-probabilities of given texts."


class Tokens(Protocol):
    """How texts become the model's tokens."""

    async def prompt(self, conversation: Conversation) -> list[int]:
        """A conversation up to where the assistant speaks."""
        ...

    async def text(self, text: str) -> list[int]:
        """What the assistant says next."""
        ...


class LocalTokens:
    """By a tokenizer that is here."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    async def prompt(self, conversation: Conversation) -> list[int]:
        return encode(self.tokenizer, [prompt_text(self.tokenizer, conversation)])[0]

    async def text(self, text: str) -> list[int]:
        return encode(self.tokenizer, [text])[0]


class Tokenized(Part):
    tokens: list[int]


class UpstreamTokens:
    """By the tokenizer of a vLLM server."""

    def __init__(self, connection: Connection, model: str) -> None:
        self.connection = connection
        self.model = model

    async def prompt(self, conversation: Conversation) -> list[int]:
        messages = [{"role": each.role, "content": each.content} for each in conversation]
        template = {"add_generation_prompt": True, "chat_template_kwargs": {"enable_thinking": False}}
        return await self._ask({"messages": messages, **template})

    async def text(self, text: str) -> list[int]:
        return await self._ask({"prompt": text, "add_special_tokens": False})

    async def _ask(self, body: dict[str, Any]) -> list[int]:
        return parse(Tokenized, await self.connection.post("/tokenize", {"model": self.model, **body})).tokens


class Read(Part):
    """What a text's tokens were to the model, from the first one on, of which it says nothing."""

    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = Field(default_factory=list)


class ReadChoice(Part):
    index: int = 0
    logprobs: Read | None = None


class ReadReply(Part):
    choices: list[ReadChoice]


async def read_texts(connection: Connection, model: str, head: list[int], tails: Sequence[list[int]]) -> list[Read]:
    """Of each tail, none of them empty, what its tokens were behind the head; BadRequest where servers cannot say."""
    if connection.upstream.dialect == "openai":
        raise BadRequest(NO_SCORES, code=NOT_SUPPORTED)
    body = {
        "model": model,
        "prompt": [head + tail for tail in tails],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,  # 0 is not taken everywhere
        "temperature": 0.0,
    }
    choices = parse(ReadReply, await connection.post("/v1/completions", body)).choices
    found = {choice.index: choice.logprobs for choice in choices}
    return [behind(found.get(number), len(head), len(tail)) for number, tail in enumerate(tails)]


def behind(read: Read | None, begin: int, length: int) -> Read:
    """The part of a reading that concerns a tail."""
    if read is None or len(read.token_logprobs) < begin + length:
        raise BadRequest(NO_SCORES, code=NOT_SUPPORTED)
    part = slice(begin, begin + length)
    return Read(token_logprobs=read.token_logprobs[part], top_logprobs=read.top_logprobs[part])


def total(read: Read) -> float:
    """The text's log-probability."""
    known = [each for each in read.token_logprobs if each is not None]
    if len(known) < len(read.token_logprobs):
        raise UpstreamFailed("The upstream server left out the log-probability of a token.")
    return sum(known)


def largest_gap(read: Read) -> float:
    """How far, in logits, the text ever is from the model's favourite; 0: it is its greedy text."""
    if len(read.top_logprobs) < len(read.token_logprobs):
        raise UpstreamFailed("The upstream server does not tell the likeliest tokens.")
    pairs = zip(read.token_logprobs, read.top_logprobs, strict=True)
    return max(max((top or {}).values(), default=0.0) - (chosen or 0.0) for chosen, top in pairs)
