"""Server-sent events: frames, and a reply that lives through silence and ends honestly after a failure."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from vcllm.contracts.problems import Problem, error_body
from vcllm.web.app import request_id
from vcllm.web.disconnect import until_disconnect

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0

_LINE_END = re.compile(r"\r\n|\r|\n")
_UNSAFE = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
"""Legal inside JSON, but some clients end a line there."""


def frame(data: BaseModel | Mapping[str, Any] | str, *, event: str | None = None, id: str | None = None) -> bytes:
    """One event. A model or mapping is sent as JSON, a string as it is, a `data:` line per line."""
    match data:
        case str():
            lines = _LINE_END.split(data)
        case BaseModel():
            lines = [data.model_dump_json().translate(_UNSAFE)]
        case _:
            lines = [json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE)]
    head = [f"{name}: {value}" for name, value in (("event", event), ("id", id)) if value is not None]
    assert not any("\n" in line or "\r" in line for line in head), "an event's name and id are one line each"
    return ("\n".join([*head, *(f"data: {line}" for line in lines)]) + "\n\n").encode()


def error_frame(error: Exception) -> bytes:
    """The error object that tells the `openai` SDK a stream has failed; no `[DONE]` may follow it."""
    if isinstance(error, Problem):
        return frame(error.body())
    message = f"Something went wrong here. The log has the details under request {request_id.get()}."
    return frame(error_body(message, "server_error", "internal_error"))


def stream_response(iterator: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> StreamingResponse:
    """Send the iterator's frames as they come, each item one or more whole frames.

    In silence a comment is sent every 15 s. When the iterator raises, an error frame ends the stream. When
    the client goes away, the iterator is cancelled where it waits, then closed.
    """
    return EventStream(iterator, headers=headers)


class EventStream(StreamingResponse):
    """See `stream_response`."""

    media_type = "text/event-stream"

    def __init__(self, iterator: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> None:
        fixed = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(iterator, headers={**(headers or {}), **fixed})
        self.iterator = iterator
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await until_disconnect(receive, self.stream_response(send))
        finally:
            if close := getattr(self.iterator, "aclose", None):
                await close()

    async def stream_response(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        keep_alive = asyncio.create_task(self._keep_alive(send))
        try:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            try:
                async for frames in self.iterator:
                    self._last_sent = clock()
                    await send(_body(frames))
            except Exception as error:
                if not isinstance(error, Problem):
                    log.exception("A stream failed.")
                await send(_body(error_frame(error)))
            keep_alive.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            keep_alive.cancel()

    async def _keep_alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        while True:
            await asyncio.sleep(max(0.01, self._last_sent + KEEP_ALIVE_S - clock()))
            if clock() - self._last_sent >= KEEP_ALIVE_S:
                self._last_sent = clock()
                await send(_body(KEEP_ALIVE))


def _body(frames: bytes) -> Message:
    return {"type": "http.response.body", "body": frames, "more_body": True}
