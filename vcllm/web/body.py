"""The body of a request: how long it may be, how long it may take, and how it is read.

A slow or endless body is given up before it holds anything but its own connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.web.replies import error_reply

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Room:
    """What one route that takes large bodies is given in place of the app's own limits."""

    max_bytes: int
    timeout_s: float


class DeclaredLength:
    """Refuses a body that is declared too long before any of it is read.

    A body without a declared length is counted by the framework's own limit.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, room: Mapping[str, Room] | None = None) -> None:
        """room: by path; whoever gives more room there sees to it that no other method of the path uses it."""
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.room = room or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            declared = header_of(scope, b"content-length")
            if len(declared) > 18 or (declared.isdecimal() and int(declared) > self._most(scope)):
                message = f"The body has {declared[:18]} bytes; at most {self._most(scope)} are accepted."
                reply = error_reply(413, message, "invalid_request_error", "request_too_large")
                await reply(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _most(self, scope: Scope) -> int:
        room = self.room.get(scope["path"])
        return self.max_body_bytes if room is None else room.max_bytes


class BodyDeadline:
    """Gives up a body that is not complete `timeout_s` after it was first asked for, however it drips."""

    def __init__(self, app: ASGIApp, timeout_s: float, room: Mapping[str, Room] | None = None) -> None:
        """room: by path."""
        self.app = app
        self.timeout_s = timeout_s
        self.room = room or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            room = self.room.get(scope["path"])
            receive = self._in_time(receive, self.timeout_s if room is None else room.timeout_s)
        await self.app(scope, receive, send)

    def _in_time(self, receive: Receive, timeout_s: float) -> Receive:
        deadline: float | None = None
        complete = False

        async def receive_in_time() -> Message:
            nonlocal deadline, complete
            if complete:
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                late = f"The body did not arrive within {timeout_s:g} s. Send it faster, or in smaller requests"
                raise HTTPException(408, late, headers={"connection": "close"}) from error
            complete = not message.get("more_body", False)
            return message

        return receive_in_time


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """The whole body. HTTPException 413 when it is longer, ClientDisconnect when its sender has left."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise HTTPException(413)
    return body


async def read_json(request: Request, model: type[M], max_bytes: int | None = None) -> M:
    """The body as a message. A body without a content type is taken for JSON.

    max_bytes: None: somebody else sees to it.
    """
    if "json" not in request.headers.get("content-type", "json"):
        raise HTTPException(415)
    body = await (request.body() if max_bytes is None else read_body(request.receive, max_bytes))
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


def header_of(scope: Scope, name: bytes) -> str:
    """A request header by its lower-case name; empty when it was not sent."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")
