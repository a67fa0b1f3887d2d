"""Stands in front of a service's work: turns away at once what cannot be served, ends what takes too long.

One plain ASGI layer. It decides before a body is read, by the state of the door and the request's headers alone;
what a request really needs is held against the door by the route, which knows it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.contracts.problems import BadRequest, DeadlineExceeded, Problem, Unavailable
from vcllm.web.admission import Admission
from vcllm.web.replies import problem_reply
from vcllm.web.sse import EventStream, error_frame

DEADLINE_HEADER = "x-vc-deadline-ms"
"""Milliseconds, counted from when the request arrives, that its client will still wait for the whole answer."""
BYTES_PER_TOKEN_AT_MOST = 8
"""Of a body: no text has fewer tokens, so nobody is turned away by this who would have found room."""
COME_BACK_S = 2.0
"""Told while the server ends: another answers by then, or this one is back."""
ENDING = "This server is shutting down. Ask again: another one answers."


class Doorkeeper:
    """For one app and one event loop."""

    def __init__(self, door: Admission, routes: Iterable[BaseRoute]) -> None:
        """routes: of the app; those that take POST do the work and are guarded, the others stay open."""
        self.door = door
        self.routes = routes
        self.draining = False
        self.cancelled: Counter[str] = Counter()
        """Requests whose work was stopped, by how far they had come: `body`, `answer` or `stream`."""
        self._inside: set[asyncio.Timeout] = set()
        self._ends_at: float | None = None
        """When what is still inside is told that the server ends, by the loop's clock."""

    @property
    def num_inside(self) -> int:
        """Requests that have not been answered to the end."""
        return len(self._inside)

    def guard(self, app: ASGIApp) -> ASGIApp:
        """The layer around an app."""
        return partial(self._serve, app)

    def drain(self, within_s: float) -> None:
        """Refuse whatever comes from now on; what is inside has so long to finish."""
        self.draining = True
        self._ends_at = ends_at = asyncio.get_running_loop().time() + within_s
        for timeout in self._inside:
            if not timeout.expired():
                timeout.reschedule(min(ends_at, timeout.when() or ends_at))

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route(scope)
        if route is None:
            return await app(scope, receive, send)
        scope["route"] = route  # for the metrics, should nobody else get to see the request
        try:
            within_s = self._let_in(scope)
        except Problem as problem:
            return await self._reply(problem, scope, receive, send)
        exchange = Exchange(receive, send)
        ends_at = None if within_s is None else asyncio.get_running_loop().time() + within_s
        try:
            await self._within(ends_at, app(scope, exchange.receive, exchange.send))
        except Late:
            exchange.stopped = True
            why = self._why(ends_at)
            if not exchange.begun:
                await self._reply(why, scope, receive, exchange.send)
            elif exchange.is_stream and not exchange.ended:
                await exchange.send({"type": "http.response.body", "body": error_frame(why)})
        finally:
            if exchange.given_up:
                self.cancelled[exchange.stage] += 1

    async def _within(self, ends_at: float | None, work: Any) -> None:
        """Late when the work had to be stopped at `ends_at`, or because the server ends."""
        try:
            async with asyncio.timeout_at(ends_at) as timeout:
                self._inside.add(timeout)
                try:
                    await work
                finally:
                    self._inside.discard(timeout)
        except TimeoutError as error:
            if timeout.expired():
                raise Late from error
            raise

    def _route(self, scope: Scope) -> BaseRoute | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path = scope["path"]
        return next((route for route in self.routes if getattr(route, "path", None) == path), None)

    def _let_in(self, scope: Scope) -> float | None:
        """Seconds the client will wait, None: for ever; a Problem when it is turned away."""
        if self.draining:
            self.door.refused["draining"] += 1
            raise Unavailable(ENDING, code="draining", retry_after_s=COME_BACK_S)
        headers = dict(scope["headers"])
        within_s = deadline_s(headers.get(DEADLINE_HEADER.encode()))
        length = headers.get(b"content-length", b"0")
        num_bytes = int(length) if length.isdigit() and len(length) < 19 else 0
        self.door.check(tokens=num_bytes // BYTES_PER_TOKEN_AT_MOST)
        if within_s is not None:
            self.door.check_deadline(within_s)
        return within_s

    def _why(self, deadline_at: float | None) -> Problem:
        """What made a request late."""
        if self._ends_at is not None and (deadline_at is None or self._ends_at < deadline_at):
            return Unavailable(ENDING, code="draining", retry_after_s=COME_BACK_S)
        return DeadlineExceeded(f"The answer was not ready within the {DEADLINE_HEADER} of the request.")

    async def _reply(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        reply = problem_reply(problem)
        if self.draining:
            reply.headers["connection"] = "close"
        await reply(scope, receive, send)


class Late(Exception):
    """Work was stopped because its time was up."""


class Exchange:
    """A request and its reply, as far as they have come."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.is_read = False
        """The whole body is here."""
        self.begun = self.ended = False
        """The reply."""
        self.is_stream = False
        self.stopped = False
        """By us, before its end."""
        self._gone = False

    @property
    def given_up(self) -> bool:
        return self.stopped or self._gone or not self.ended

    @property
    def stage(self) -> str:
        """How far it came."""
        if self.is_stream:
            return "stream"
        return "answer" if self.is_read else "body"

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self.is_read = True
        elif message["type"] == "http.disconnect" and not self.ended:
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.is_stream = any(
                name == b"content-type" and value.startswith(EventStream.media_type.encode())
                for name, value in message["headers"]
            )
        elif not message.get("more_body"):
            self.ended = True
        await self._send(message)


def deadline_s(header: bytes | None) -> float | None:
    """Seconds of a deadline header; None: there is none. BadRequest for anything but whole milliseconds."""
    if header is None:
        return None
    if not header.isdigit() or len(header) > 12:
        message = f"{DEADLINE_HEADER}: give the milliseconds that you will wait, such as 30000."
        raise BadRequest(message, param=DEADLINE_HEADER, code="invalid_deadline")
    if not int(header):
        raise DeadlineExceeded(f"The {DEADLINE_HEADER} of the request was 0 when it arrived.")
    return int(header) / 1000
