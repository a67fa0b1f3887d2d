"""Server-sent events: frames, and a reply that lives through silence and ends honestly after a failure."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterable, Mapping
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from vcllm.contracts.problems import Problem, error_body
from vcllm.web.app import request_id
from vcllm.web.disconnect import disconnected, unless_gone

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0

_LINE_END = re.compile(r"\r\n|\r|\n")
_UNSAFE = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
"""Legal inside JSON, but some clients end a line there."""
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_text(text: str) -> bytes:
    """A string as JSON that no client can take for the end of a line."""
    encoded = _encode(text)
    return (encoded if encoded.isascii() else encoded.translate(_UNSAFE)).encode()


def json_line(data: BaseModel | Mapping[str, Any]) -> bytes:
    """JSON on what every client takes for one line."""
    encoded = data.model_dump_json() if isinstance(data, BaseModel) else _encode(data)
    return encoded.translate(_UNSAFE).encode()


def frame(data: BaseModel | Mapping[str, Any] | str, *, event: str | None = None, id: str | None = None) -> bytes:
    """One event. A model or mapping is sent as JSON, a string as it is, a `data:` line per line."""
    lines = [line.encode() for line in _LINE_END.split(data)] if isinstance(data, str) else [json_line(data)]
    head = [f"{name}: {value}" for name, value in (("event", event), ("id", id)) if value is not None]
    assert not any("\n" in line or "\r" in line for line in head), "an event's name and id are one line each"
    return b"\n".join([*(line.encode() for line in head), *(b"data: " + line for line in lines)]) + b"\n\n"


def error_frame(error: Exception) -> bytes:
    """The error object that tells the `openai` SDK a stream has failed; no `[DONE]` may follow it."""
    if isinstance(error, Problem):
        return frame(error.body())
    message = f"Something went wrong here. The log has the details under request {request_id.get()}."
    return frame(error_body(message, "server_error", "internal_error"))


def stream_response(
    iterator: AsyncIterable[bytes], headers: dict[str, str] | None = None, *, keep_alive_s: float = KEEP_ALIVE_S
) -> StreamingResponse:
    """Send the iterator's frames as they come, each item one or more whole frames.

    After a silence of `keep_alive_s` a comment is sent; 0: never. When the iterator raises, an error frame ends
    the stream. When the client goes away, the iterator is cancelled where it waits, then closed.
    """
    return EventStream(iterator, headers, keep_alive_s)


class EventStream(StreamingResponse):
    """See `stream_response`."""

    media_type = "text/event-stream"

    def __init__(
        self,
        iterator: AsyncIterable[bytes],
        headers: dict[str, str] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        fixed = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(iterator, headers={**(headers or {}), **fixed})
        self.iterator = iterator
        self.keep_alive_s = keep_alive_s
        self._open = False
        """Between the headers and the end."""
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await unless_gone(self._watch(receive, send), self.stream_response(send))
        finally:
            if close := getattr(self.iterator, "aclose", None):
                await close()

    async def stream_response(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._open, self._last_sent = True, clock()
        try:
            async for frames in self.iterator:
                self._last_sent = clock()
                await send(_body(frames))
        except Exception as error:
            if not isinstance(error, Problem):
                log.exception("A stream failed.")
            await send(_body(error_frame(error)))
        self._open = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Returns when the client has gone; until then, a comment after each silence."""
        clock = asyncio.get_running_loop().time
        wait_s = self.keep_alive_s or None
        while not await _gone_within(wait_s, receive):
            if self._open and clock() >= self._last_sent + self.keep_alive_s:
                self._last_sent = clock()
                await send(_body(KEEP_ALIVE))
            silent_s = clock() - self._last_sent if self._open else 0.0
            wait_s = max(0.01, self.keep_alive_s - silent_s)


async def _gone_within(wait_s: float | None, receive: Receive) -> bool:
    try:
        async with asyncio.timeout(wait_s):
            await disconnected(receive)
    except TimeoutError:
        return False
    return True


def _body(frames: bytes) -> Message:
    return {"type": "http.response.body", "body": frames, "more_body": True}
