"""OpenAI-compatible chat: requests, replies and stream frames.

Unsupported fields follow one rule: those in `IGNORED_FIELDS` cannot change the text and are accepted and ignored;
every other unknown field is refused by name, because ignoring it would return something the caller did not ask for.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vcllm.contracts.base import Contract

ALIGNED_MODEL = "vc-llm"
"""The model name that always means the promoted version."""

IGNORED_FIELDS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})

FinishReason = Literal["stop", "length"]


class ChatMessage(Contract):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class StreamOptions(Contract):
    """What a stream carries besides text."""

    include_usage: bool = False


class TokenLogprob(Contract):
    """A token and the natural log of its probability."""

    token: str
    logprob: float
    """As the model gives it: before temperature, bias and any cut of the distribution."""
    bytes: list[int] | None = None
    """UTF-8 of `token`; None where the token is only part of a character."""


class ChosenLogprob(TokenLogprob):
    """A token of an answer."""

    top_logprobs: list[TokenLogprob] = Field(default_factory=list)
    """The likeliest in its place, best first; as many as were asked for."""


class ChoiceLogprobs(Contract):
    """As the OpenAI API shows them."""

    content: list[ChosenLogprob]
    refusal: None = None


class Sampling(Contract):
    """How tokens are drawn."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32768)
    """None: the server's default."""
    seed: int | None = None
    """Same seed, request and version: same text."""
    stop: list[str] = Field(default_factory=list, max_length=4)
    top_k: int = Field(default=0, ge=0)
    """Only the so many likeliest tokens are drawn from; 0: all."""
    logit_bias: dict[int, float] = Field(default_factory=dict, max_length=300)
    """By token id, from -100 to 100: added to its logit; -100 forbids a token, 100 forces it."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Log-probabilities of the answer's tokens, with so many alternatives each; None: none."""


class ChatRequest(Contract):
    """`POST /v1/chat/completions`."""

    model: str = Field(default=ALIGNED_MODEL, max_length=128)
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32768)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=32768)
    """The newer name of `max_tokens`; wins when both are given."""
    n: int = Field(default=1, ge=1, le=16)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, value: object) -> object:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if key not in IGNORED_FIELDS}
        return value

    @property
    def sampling(self) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            seed=self.seed,
            stop=stop,
        )


class Usage(Contract):
    """Token counts of one reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(Contract):
    """One sampled answer."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason


class ChatReply(Contract):
    """A whole (not streamed) reply."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    """The version that answered."""
    choices: list[Choice]
    usage: Usage


class ChatBatchRequest(Contract):
    """`POST /v1/chat/completions/batch`: many conversations with the same sampling, answered together."""

    model: str = Field(default=ALIGNED_MODEL, max_length=128)
    conversations: list[list[ChatMessage]] = Field(min_length=1, max_length=512)
    sampling: Sampling = Sampling()
    """A seed given here is offset by each conversation's position."""
    n: int = Field(default=1, ge=1, le=16)


class Completion(Contract):
    """One sampled answer of a batch."""

    text: str
    finish_reason: FinishReason
    num_tokens: int
    logprobs: list[ChosenLogprob] | None = None
    """One per token, but for those that a stop string has cut off; None: not asked for."""


class ChatBatchReply(Contract):
    """`completions[i]` holds the n answers to conversation i."""

    model: str
    completions: list[list[Completion]]


class ModelCard(Contract):
    """One row of `/v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vc-llm"
    parent: str | None = None
    alias: list[str] = Field(default_factory=list)
    checksum: str | None = None
    """sha256 over the manifest; None for an alias."""


class ModelList(Contract):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
