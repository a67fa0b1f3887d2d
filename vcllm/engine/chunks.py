"""What an OpenAI-compatible server sends, read strictly where it matters and leniently elsewhere; and what we ask.

Fields that are not named here are passed over: every server adds some of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcllm.contracts.chat import ChatMessage, ChosenLogprob, FinishReason, Sampling, TokenLogprob
from vcllm.contracts.problems import BadRequest, Problem, Unavailable, UpstreamFailed
from vcllm.engine.upstream import NOT_SUPPORTED, Upstream, problem_of, said

REPLACEMENT = "\ufffd"

R = TypeVar("R", bound=BaseModel)


class Part(BaseModel):
    """A piece of something an upstream server sent."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Alternative(Part):
    token: str
    logprob: float
    bytes: list[int] | None = None


class Place(Alternative):
    top_logprobs: list[Alternative] = Field(default_factory=list)


class Logprobs(Part):
    content: list[Place] | None = None


class Text(Part):
    content: str | None = None


class Choice(Part):
    """One answer, or the next piece of it."""

    index: int = 0
    delta: Text | None = None
    message: Text | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    """A vLLM server tells them when asked."""


class Usage(Part):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class Reply(Part):
    """A whole reply, or one frame of a stream."""

    choices: list[Choice] = Field(default_factory=list)
    usage: Usage | None = None
    error: Any = None


def parse(kind: type[R], body: bytes) -> R:
    """UpstreamFailed for what is no such thing."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise UpstreamFailed("The upstream server sent something else than an OpenAI-compatible reply.") from error


def parse_reply(body: bytes) -> Reply:
    """A reply or frame; an error object in it is raised as what it says."""
    reply = parse(Reply, body)
    if reply.error is not None:
        raise problem_in_stream(reply.error)
    return reply


def problem_in_stream(error: Any) -> Problem:
    """An error object that came with status 200, which therefore has to tell its status itself."""
    fields = error if isinstance(error, dict) else {"message": error}
    status = fields.get("code")
    if isinstance(status, int) and 400 <= status < 600:
        return problem_of(status, Reply(error=fields).model_dump_json().encode(), {})
    return Unavailable(said(fields) or "The upstream server failed in the middle of an answer. Try again.")


def finish_of(reason: str) -> FinishReason:
    """Whether an answer is complete: what a filter cut off is no more complete than what a limit did."""
    if reason in ("stop", "eos"):
        return "stop"
    if reason in ("length", "content_filter"):
        return "length"
    if reason in ("abort", "error"):
        raise Unavailable("The upstream server gave up an answer in the middle. Try again.")
    raise UpstreamFailed(f"The upstream server ended an answer with '{reason}', which nobody asked for.")


def logprobs_of(choice: Choice, num_alternatives: int | None) -> list[ChosenLogprob]:
    """Of each token, as our own engine tells them; None: they were not asked for."""
    if num_alternatives is None or choice.logprobs is None:
        return []
    return [
        ChosenLogprob(
            token=place.token,
            logprob=place.logprob,
            bytes=bytes_of(place),
            top_logprobs=[
                TokenLogprob(token=each.token, logprob=each.logprob, bytes=bytes_of(each))
                for each in place.top_logprobs[:num_alternatives]
            ],
        )
        for place in choice.logprobs.content or ()
    ]


def bytes_of(place: Alternative) -> list[int] | None:
    """UTF-8 of the token; None for part of a character, which servers write as nothing or as a replacement."""
    if not place.token or REPLACEMENT in place.token:
        return None
    return list(place.token.encode())


def num_tokens_of(choice: Choice) -> int:
    """Tokens in it as far as the server tells them; 0: it does not."""
    places = choice.logprobs.content if choice.logprobs else None
    return max(len(choice.token_ids or ()), len(places or ()))


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """A total that is known, divided by weights, in whole numbers that add up to it."""
    whole, told, passed = sum(weights), 0, 0
    found = []
    for place, weight in enumerate(weights):
        passed += weight if whole else 1
        upto = round(total * passed / (whole or len(weights))) if place < len(weights) - 1 else total
        found.append(upto - told)
        told = upto
    return found


def chat_body(
    upstream: Upstream,
    model: str,
    messages: Sequence[ChatMessage],
    sampling: Sampling,
    n: int,
    *,
    max_tokens: int | None,
    stop_ids: Sequence[int],
) -> dict[str, Any]:
    """A chat request, whole. max_tokens: None leaves it to the server."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": each.role, "content": each.content} for each in messages],
        "n": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if max_tokens is not None:
        body["max_tokens" if upstream.extended else "max_completion_tokens"] = max_tokens
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = sampling.stop
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return body | extensions(upstream, sampling, stop_ids)


def extensions(upstream: Upstream, sampling: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """What goes beyond the OpenAI API.

    Such servers put the model's `generation_config.json` in the place of what a request leaves out, so all is said.
    """
    if not upstream.extended:
        if sampling.top_k:
            raise BadRequest("The upstream server of this model takes no top_k.", param="top_k", code=NOT_SUPPORTED)
        return {}
    body: dict[str, Any] = {
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    if stop_ids:
        body["stop_token_ids"] = list(stop_ids)
    if upstream.dialect == "vllm":
        body["return_token_ids"] = True
    return body
