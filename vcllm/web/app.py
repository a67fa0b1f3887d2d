"""The app factory: every reply of every service carries a request id, and every error the OpenAI error body.

Knows nothing of what a service does, nor of who may call it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.contracts.problems import Problem
from vcllm.web.body import BodyDeadline, DeclaredLength, Room, header_of
from vcllm.web.openapi import put_right
from vcllm.web.replies import error_reply, problem_reply
from vcllm.web.tracing import arrive, depart
from vcllm.web.tracing import request_id as request_id

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any] | None]]

CLIENT_GONE = 499
"""Status in the metrics of a request whose client left before the answer; nobody receives it."""

JSON_WANTED = "Send JSON, with the header Content-Type: application/json."
LONGEST_PARAM = 200
"""Characters of a field's name that are said again; it may be the sender's own invention."""

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
}


class Service(FastAPI):
    """FastAPI with room for ASGI layers outside everything, its error handling included."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.layers: list[Callable[[ASGIApp], ASGIApp]] = []
        """Innermost first; complete before the first request."""
        self.shortcuts: dict[tuple[str, str], BaseRoute] = {}
        """By method and path: routes that are served without the framework's layers."""
        self.read_by_hand: list[type[BaseModel]] = []
        """Bodies that routes read by themselves; the description of the API has them all the same."""
        self.credential = "A service token: a JWT for this role, which services of the installation make."
        self.scopes: Callable[[FastAPI], Mapping[str, Collection[str]]] = lambda _: {}
        """Those that the credential must have, by `METHOD path`; for the description."""

    def openapi(self) -> dict[str, Any]:
        """What it serves, for people and tools; `vcllm.web.openapi` says what is put right in it."""
        if self.openapi_schema is None:
            plain = super().openapi()
            self.openapi_schema = put_right(plain, self.read_by_hand, self.credential, self.scopes(self))
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        stack: ASGIApp = super().build_middleware_stack()
        if self.shortcuts:
            stack = Shortcuts(stack, self.shortcuts, self.exception_handlers)
        for wrap in self.layers:
            stack = wrap(stack)
        return RequestId(stack)


def create_service(
    title: str,
    *,
    lifespan: Lifespan | None,
    max_body_bytes: int = 8 << 20,
    body_timeout_s: float = 30.0,
    room: Mapping[str, Room] | None = None,
) -> Service:
    """An app without docs routes.

    title: the service's role; it becomes the `role` label of its metrics.
    max_body_bytes: a larger body is refused with 413, whether its length is declared or not.
    body_timeout_s: a body that takes longer is given up with 408.
    room: by path, other limits than these two; the route of that path must have the same `max_body_size`.
    """
    app = Service(
        title=title,
        lifespan=lifespan,
        max_body_size=max_body_bytes,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.layers.append(partial(BodyDeadline, timeout_s=body_timeout_s, room=room))
    app.layers.append(partial(DeclaredLength, max_body_bytes=max_body_bytes, room=room))
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _bug)
    return app


def is_work(scope: Scope) -> bool:
    """Whether it is a request of somebody who wants something done, rather than a health check or a scrape."""
    return scope["type"] == "http" and scope["path"] != "/metrics" and not scope["path"].startswith("/health/")


class Shortcuts:
    """Serves a few routes past the framework's own layers, which cost as much as ours; errors get the same replies.

    Such a route bounds the body that it reads by itself.
    """

    def __init__(
        self, app: ASGIApp, routes: Mapping[tuple[str, str], BaseRoute], handlers: Mapping[Any, Callable[..., Any]]
    ) -> None:
        """handlers: by kind of error, `Exception` among them."""
        self.app = app
        self.routes = routes
        self.handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            return await self.app(scope, receive, send)
        scope["route"] = route
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await route.handle(scope, receive, note)
        except Exception as error:
            if begun:
                raise
            kind = next(kind for kind in type(error).__mro__ if kind in self.handlers)
            reply = await self.handlers[kind](Request(scope), error)
            await reply(scope, receive, send)
            if kind is Exception:
                raise  # the server logs it


class RequestId:
    """Gives each request an id (the client's own where it is safe) and says it in the reply; puts it into its trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sent = header_of(scope, b"x-request-id")
        id_ = sent if _SAFE_ID.fullmatch(sent) else f"req-{secrets.token_hex(12)}"
        scope["vc_started"] = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = id_
            await send(message)

        token, place = request_id.set(id_), arrive(header_of(scope, b"traceparent"))
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            depart(place)
            request_id.reset(token)


async def _problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_reply(problem)


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"There is nothing at {request.method} {request.url.path}.",
        405: f"{request.url.path} does not take {request.method}.",
        413: "The body is larger than this server accepts.",
        415: JSON_WANTED,
    }
    message = messages.get(error.status_code, f"{error.detail or HTTPStatus(error.status_code).phrase}.")
    type_ = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    reply = error_reply(error.status_code, message, type_, _CODES.get(error.status_code))
    reply.headers.update(error.headers or {})
    return reply


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if where == ["body"] and "json" not in request.headers.get("content-type", ""):
        return error_reply(415, JSON_WANTED, "invalid_request_error", _CODES[415])
    if first["type"] == "json_invalid":
        message = f"The body is not valid JSON: {first.get('ctx', {}).get('error', 'cannot be read')}."
        return error_reply(400, message, "invalid_request_error", "invalid_json")
    param = ".".join(where[1:])[:LONGEST_PARAM] or where[0]
    return error_reply(400, f"{param}: {first['msg']}", "invalid_request_error", first["type"], param)


async def _half_a_character(_: Request, __: Exception) -> Response:
    """JSON can hold half a surrogate pair, which no text that is worked on or sent back can."""
    message = "A text in the request ends or begins in the middle of a character and cannot be encoded."
    return error_reply(400, message, "invalid_request_error", "invalid_text")


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _bug(_: Request, __: Exception) -> Response:
    """The traceback is logged by the HTTP server; the client gets an id to quote."""
    message = f"Something went wrong here. The log has the details under request {request_id.get()}."
    return error_reply(500, message, "server_error", "internal_error")
