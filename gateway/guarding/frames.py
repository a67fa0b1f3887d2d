"""The frames of a streamed chat as the guard reads and writes them.

Read strictly: a frame with room for text that nobody would look at is no frame of an Actor.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.asking import BROKE_OFF
from vcllm.contracts.chat import Usage
from vcllm.contracts.problems import UpstreamFailed
from vcllm.web.http_reply import BrokeOff
from vcllm.web.replicas import Exchange
from vcllm.web.sse import DONE, json_line
from vcllm.web.sse import frame as sse_frame
from vcllm.web.usage import take_usage

NOT_OURS = "The Actor's stream is not in the form that the guard can read. Ask again, or without a stream."
DATA = b"data: "
HEAD = ("id", "object", "created", "model", "system_fingerprint")
"""What all frames of a stream share."""
CHUNK = {*HEAD, "choices", "usage"}
CHOICE = {"index", "delta", "logprobs", "finish_reason"}
DELTA = {"role", "content", "refusal"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A frame with a part of one answer."""

    raw: bytes
    index: int
    text: str
    tells: bool
    """It has no text, and tells of tokens that will be text in a later frame."""
    finished: bool
    head: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tail:
    """The frame with the usage."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """The frame with the error that ends a stream."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Counted:
    """The comment for the gateway alone: what was used, prompt and answers together."""

    tokens: int


@dataclass(frozen=True, slots=True)
class End:
    """`[DONE]`."""


Frame = Piece | Tail | Broken | Counted | End


def read_frames(frames: bytes) -> Iterator[Frame]:
    """Of whole frames; other comments are left out. UpstreamFailed for what is none."""
    frames, tokens = take_usage(frames)
    if tokens is not None:
        yield Counted(tokens)
    for raw in frames.split(b"\n\n")[:-1]:
        if not raw.startswith(b":"):
            yield _read(raw + b"\n\n")


def _read(raw: bytes) -> Frame:
    if raw == DONE:
        return End()
    try:
        chunk = json.loads(raw.removeprefix(DATA)) if raw.startswith(DATA) else None
    except ValueError:
        chunk = None
    if isinstance(chunk, dict) and isinstance(chunk.get("error"), dict):
        return Broken(raw)
    if not isinstance(chunk, dict) or not chunk.keys() <= CHUNK or not isinstance(chunk.get("choices"), list):
        raise UpstreamFailed(NOT_OURS)
    choices = chunk["choices"]
    return _piece(raw, chunk, choices) if choices else Tail(raw)


def _piece(raw: bytes, chunk: dict[str, Any], choices: list[Any]) -> Piece:
    choice = choices[0]
    if len(choices) > 1 or not isinstance(choice, dict) or not choice.keys() <= CHOICE:
        raise UpstreamFailed(NOT_OURS)
    delta, index = choice.get("delta"), choice.get("index")
    if not isinstance(delta, dict) or not delta.keys() <= DELTA or delta.get("refusal") is not None:
        raise UpstreamFailed(NOT_OURS)
    text = delta.get("content") or ""
    if not isinstance(text, str) or not isinstance(index, int) or delta.get("role", "assistant") != "assistant":
        raise UpstreamFailed(NOT_OURS)
    head = {name: chunk[name] for name in HEAD if name in chunk}
    tells = not text and choice.get("logprobs") is not None
    return Piece(raw, index, text, tells, choice.get("finish_reason") is not None, head)


async def frames_of(exchange: Exchange) -> AsyncIterator[Frame]:
    """As an Actor writes them. UpstreamFailed when it breaks off, or writes what is no frame."""
    rest = b""
    chunks = exchange.chunks()
    while True:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except (BrokeOff, TimeoutError) as error:
            raise UpstreamFailed(BROKE_OFF) from error
        whole, end, rest = (rest + chunk).rpartition(b"\n\n")
        for frame in read_frames(whole + end):
            yield frame


class RefusalWriter:
    """Frames in place of what is not shown, as if the Actor had written them."""

    def __init__(self, model: str, include_usage: bool) -> None:
        """model: until a frame of the Actor says which version it is."""
        self.head: Mapping[str, Any] = new_head("chat.completion.chunk", model)
        self._include_usage = include_usage

    def role(self, index: int) -> bytes:
        return self._frame(index, {"role": "assistant", "content": "", "refusal": None})

    def refusal(self, index: int, text: str, told: Mapping[str, Any]) -> bytes:
        """The text, and the frame that ends the answer. told: see `with_verdict`."""
        finish = self._frame(index, {}, "content_filter")
        return self._frame(index, {"content": text}) + with_verdict(finish, told)

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Where it was asked for."""
        if not self._include_usage:
            return b""
        return sse_frame({**self.head, "choices": [], "usage": usage_of(prompt_tokens, completion_tokens).model_dump()})

    def _frame(self, index: int, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return sse_frame({**self.head, "choices": [choice], **usage})


def with_verdict(frames: bytes, told: Mapping[str, Any]) -> bytes:
    """The last of them with the field `vc`, which clients of the OpenAI API pass over; nothing else is changed."""
    end = frames.rindex(b"}")
    return frames[:end] + b',"vc":' + json_line(told) + frames[end:]


def new_head(kind: str, model: str) -> dict[str, Any]:
    """Of a reply that no Actor began."""
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def usage_of(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
