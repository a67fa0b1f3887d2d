"""The layer in front of the work, on a real socket: refusals, deadlines, disconnects and the end of a server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, Request

from tests.servers import serve, wait_until
from vcllm.contracts.problems import DeadlineExceeded
from vcllm.web.admission import Admission
from vcllm.web.app import Service, create_service
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.doorkeeper import DEADLINE_HEADER, Doorkeeper
from vcllm.web.problems import problem_of
from vcllm.web.sse import DONE, frame, stream_response


class Workshop:
    """Works for as many seconds as it is asked to, whole or as a stream."""

    def __init__(self, max_answers: int = 4) -> None:
        self.app = create_service("workshop", lifespan=None)
        assert isinstance(self.app, Service)
        self.door = Admission(max_answers)
        self.keeper = Doorkeeper(self.door, self.app.routes)
        self.app.layers.append(self.keeper.guard)
        self.app.post("/work")(self.work)
        self.app.post("/stream")(self.stream)
        self.app.get("/look")(self.look)
        self.loop: asyncio.AbstractEventLoop
        self.url = ""

    async def work(self, body: Annotated[float, Body()], request: Request) -> str:
        self.loop = asyncio.get_running_loop()
        async with self.door.enter():
            await cancel_on_disconnect(request, asyncio.sleep(body))
        return "done"

    async def stream(self, body: Annotated[float, Body()]) -> Any:
        self.loop = asyncio.get_running_loop()
        return stream_response(self.frames(body))

    async def frames(self, seconds: float) -> AsyncIterator[bytes]:
        async with self.door.enter():
            yield frame("begun")
            await asyncio.sleep(seconds)
            yield DONE

    async def look(self) -> str:
        return "open"

    def drain(self, within_s: float) -> None:
        self.loop.call_soon_threadsafe(self.keeper.drain, within_s)
        wait_until(lambda: self.keeper.draining)

    def post(self, path: str, seconds: float, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=seconds, headers=headers, timeout=10)

    def begin(self, seconds: float, path: str = "/work") -> socket.socket:
        """A request whose answer nobody has read yet."""
        connection = self.send_head(path, len(str(seconds)))
        connection.sendall(str(seconds).encode())
        return connection

    def send_head(self, path: str, length: int) -> socket.socket:
        port = httpx.URL(self.url).port
        connection = socket.create_connection(("127.0.0.1", port or 0), timeout=10)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        return connection


@contextmanager
def open_workshop(max_answers: int = 4) -> Iterator[Workshop]:
    workshop = Workshop(max_answers)
    with serve(workshop.app) as workshop.url:
        yield workshop


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    with open_workshop() as opened:
        yield opened


def received(connection: socket.socket) -> str:
    """All that comes until the server closes, or has nothing more to say for a moment."""
    connection.settimeout(0.5)
    said = b""
    with connection, suppress(TimeoutError):
        while piece := connection.recv(65536):
            said += piece
    return said.decode()


def milliseconds(number: int) -> dict[str, str]:
    return {DEADLINE_HEADER: str(number)}


def test_a_refusal_does_not_wait_for_the_body() -> None:
    """Headers are enough to say that the server is full, and for how long; other routes stay open."""
    with open_workshop(max_answers=1) as workshop, workshop.begin(30):
        wait_until(lambda: workshop.door.inside == 1)
        said = received(workshop.send_head("/work", length=1_000_000))

        assert said.startswith("HTTP/1.1 429")
        assert "retry-after-ms:" in said
        assert httpx.get(workshop.url + "/look").status_code == 200


def test_work_is_stopped_at_its_deadline(workshop: Workshop) -> None:
    """504 with the error body; its place is free at once, and a client raises what the server meant."""
    reply = workshop.post("/work", 30, **milliseconds(100))

    assert workshop.door.inside == 0
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert isinstance(problem_of(504, reply.content, reply.headers), DeadlineExceeded)
    assert workshop.keeper.cancelled == {"answer": 1}


def test_a_stream_is_stopped_at_its_deadline(workshop: Workshop) -> None:
    """The last frame is the error, and no `[DONE]` pretends that all is well."""
    reply = workshop.post("/stream", 30, **milliseconds(200))

    frames = reply.text.strip().split("\n\n")
    assert reply.status_code == 200
    assert frames[0] == "data: begun"
    assert json.loads(frames[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert workshop.door.inside == 0


def test_work_that_is_done_in_time_does_not_notice_its_deadline(workshop: Workshop) -> None:
    """Nor does the next request on the connection."""
    reply = workshop.post("/work", 0.01, **milliseconds(5000))

    assert (reply.status_code, workshop.keeper.cancelled) == (200, {})


@pytest.mark.parametrize(("sent", "status"), [("0", 504), ("soon", 400), ("-5", 400), ("1.5", 400), ("9" * 13, 400)])
def test_a_deadline_is_whole_milliseconds(workshop: Workshop, sent: str, status: int) -> None:
    """None left is a deadline that has passed; anything else that is no number is the sender's mistake."""
    reply = workshop.post("/work", 0, **{DEADLINE_HEADER: sent})

    assert reply.status_code == status


def test_a_deadline_out_of_reach_is_told_at_once() -> None:
    """One place, things that take 0.2 s, five of them waiting: half a second is not enough."""
    with open_workshop(max_answers=64) as workshop, ExitStack() as waiting:
        for _ in range(3):
            workshop.post("/work", 0.2)
        for _ in range(5):
            waiting.enter_context(workshop.begin(5))
        wait_until(lambda: workshop.door.inside == 5)

        reply = workshop.post("/work", 0, **milliseconds(500))

    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "deadline_unreachable")
    assert 50 <= int(reply.headers["retry-after-ms"]) < 5000


def test_clients_that_leave_are_counted_by_how_far_they_came(workshop: Workshop) -> None:
    """In the middle of their body, of the wait for an answer, and of a stream."""
    workshop.send_head("/work", length=1000).close()
    with workshop.begin(30):
        wait_until(lambda: workshop.door.inside == 1)
    with workshop.begin(30, "/stream") as stream:
        stream.recv(100)

    wait_until(lambda: sum(workshop.keeper.cancelled.values()) == 3)
    assert workshop.keeper.cancelled == {"body": 1, "answer": 1, "stream": 1}
    assert workshop.keeper.num_inside == 0


def test_while_it_ends_a_server_refuses_and_finishes(workshop: Workshop) -> None:
    """Newcomers hear 503 and are sent elsewhere; what was let in before is answered."""
    inside = workshop.begin(0.3)
    wait_until(lambda: workshop.door.inside == 1)
    workshop.drain(within_s=10)

    refused = workshop.post("/work", 0)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["connection"] == "close"
    assert int(refused.headers["retry-after"]) >= 1
    assert '"done"' in received(inside)


def test_what_outlasts_the_end_is_told_so(workshop: Workshop) -> None:
    """503 for a whole answer, an error frame in a stream; nobody is left in silence."""
    inside, stream = workshop.begin(30), workshop.begin(30, "/stream")
    wait_until(lambda: workshop.door.inside == 2)
    workshop.drain(within_s=0.1)

    whole, streamed = received(inside), received(stream)

    assert whole.startswith("HTTP/1.1 503") and "draining" in whole
    assert "begun" in streamed and "draining" in streamed and "[DONE]" not in streamed
    assert workshop.door.inside == 0
