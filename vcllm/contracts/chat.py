"""OpenAI-compatible chat: requests and replies. What of the API is not supported stands in `openai_fields`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vcllm.contracts.base import Contract
from vcllm.contracts.openai_fields import (
    IGNORED_FIELDS,
    NEUTRAL_IN_MESSAGE,
    NEUTRAL_IN_REQUEST,
    NEUTRAL_IN_STREAM_OPTIONS,
    Neutral,
    supported_fields,
)

ALIGNED_MODEL = "vc-llm"
"""The model name that always means the promoted version."""

FinishReason = Literal["stop", "length"]


def _system(role: object) -> object:
    return "system" if role == "developer" else role


def _joined(content: object) -> object:
    """Text parts, a line each, as one text."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError("unsupported_content", 'Send text parts only: {"type": "text", "text": "..."}.')
    return "\n".join(part["text"] for part in content)


def _listed(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


class OpenAIFields(Contract):
    """What a client of the OpenAI API sends, with more fields than are supported."""

    model_config = ConfigDict(allow_inf_nan=False)

    neutral: ClassVar[Neutral] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return supported_fields(value, cls.model_fields, cls.ignored, cls.neutral)


class ChatMessage(OpenAIFields):
    """One turn."""

    neutral = NEUTRAL_IN_MESSAGE

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_system)]
    """The newer name "developer" is read as "system"."""
    content: Annotated[str, BeforeValidator(_joined)]
    """May be sent as a list of text parts."""


class StreamOptions(OpenAIFields):
    """What a stream carries besides text."""

    neutral = NEUTRAL_IN_STREAM_OPTIONS

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


Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
LogitBias = Annotated[
    dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)
]
"""By token id, from -100 to 100: added to its logit; -100 forbids a token, 100 forces it."""


class Sampling(Contract):
    """How tokens are drawn."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32768)
    """None: the server's default."""
    seed: Seed | None = None
    """Same seed, request and version: same text."""
    stop: list[str] = Field(default_factory=list, max_length=4)
    top_k: int = Field(default=0, ge=0)
    """Only the so many likeliest tokens are drawn from; 0: all."""
    logit_bias: LogitBias = Field(default_factory=dict)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Log-probabilities of the answer's tokens, with so many alternatives each; None: none."""


class ChatRequest(OpenAIFields):
    """`POST /v1/chat/completions`."""

    neutral = NEUTRAL_IN_REQUEST
    ignored = IGNORED_FIELDS

    model: str = Field(default=ALIGNED_MODEL, max_length=128)
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """An extension of the OpenAI API; 0: off."""
    max_tokens: int | None = Field(default=None, ge=1, le=32768)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=32768)
    """The newer name of `max_tokens`; wins when both are given."""
    n: int = Field(default=1, ge=1, le=16)
    seed: Seed | None = None
    stop: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list, max_length=4)
    """May be sent as one string."""
    logit_bias: LogitBias = Field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("needs_logprobs", "Send logprobs: true as well.")
        return value

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            seed=self.seed,
            stop=self.stop,
            logit_bias=self.logit_bias,
            logprobs=self.top_logprobs if self.logprobs else None,
        )


class Usage(Contract):
    """Token counts of one reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(Contract):
    """An answer as the OpenAI API shows it."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    """Always so: an answer that declines is text like any other."""


class Choice(Contract):
    """One sampled answer."""

    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None = None
    """None: not asked for."""
    finish_reason: FinishReason | Literal["content_filter"]
    """`content_filter`: a gateway's guard does not show the answer; the charter's refusal stands in its place."""


class ChatReply(Contract):
    """A whole (not streamed) reply."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    """The version that answered."""
    system_fingerprint: str | None = None
    """Tells versions apart by their content."""
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
