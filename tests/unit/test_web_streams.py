"""Frames on the wire, streams through silence and failure, and work that ends with its client."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import Request, Response
from pydantic import BaseModel

from tests.servers import serve, wait_until
from vcllm.contracts.problems import Overloaded
from vcllm.web.admission import Admission
from vcllm.web.app import create_service
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.sse import DONE, frame, stream_response


class Word(BaseModel):
    text: str


def test_frames_are_what_the_standard_says():
    """Models and mappings as JSON, strings as they are, name and id before the data."""
    assert frame(Word(text="你好")) == 'data: {"text":"你好"}\n\n'.encode()
    assert frame({"text": "a"}, event="word", id="1-0") == b'event: word\nid: 1-0\ndata: {"text":"a"}\n\n'
    assert frame("two\nlines\r\n") == b"data: two\ndata: lines\ndata: \n\n"
    assert frame("[DONE]") == DONE


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\u2028b", "a\u2029b", "a\x85b", "\x00", "😀"])
def test_no_text_can_break_out_of_its_frame(text: str):
    """Whatever a client takes for the end of a line, it gets one data line and the text back."""
    for sent in (frame(Word(text=text)).decode(), frame({"text": text}).decode()):
        assert len(sent.splitlines()) == 2
        assert json.loads(sent.removeprefix("data: "))["text"] == text


@pytest.mark.parametrize("name", ["a\nb", "a\rdata: x"])
def test_a_frame_has_one_line_for_its_name(name: str):
    """Anything else would let data pass for a field."""
    with pytest.raises(AssertionError):
        frame("x", event=name)


class Watched:
    """An app whose work tells how it ended."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.started = threading.Event()
        self.app = create_service("watched", lifespan=None)
        self.app.get("/stream/{kind}")(self.stream)
        self.app.post("/work")(self.work)
        self.app.get("/quick")(self.quick)

    async def stream(self, kind: str, keep_alive_s: float = 15) -> Response:
        return stream_response(self.frames(kind), {"x-vc-version": "v1"}, keep_alive_s=keep_alive_s)

    async def frames(self, kind: str) -> AsyncIterator[bytes]:
        try:
            yield frame("one")
            self.started.set()
            if kind == "problem":
                raise Overloaded("Full.", retry_after_s=1)
            if kind == "bug":
                raise RuntimeError("canary-secret")
            if kind == "silent":
                await asyncio.sleep(0.35)
            if kind == "endless":
                await asyncio.sleep(60)
            yield DONE
        finally:
            await asyncio.sleep(0)  # closing may take a while, too
            self.ended[kind] = "closed"

    async def work(self, request: Request) -> str:
        return await cancel_on_disconnect(request, self.slow())

    async def slow(self) -> str:
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.ended["work"] = "cancelled"
            raise
        return "never"

    async def quick(self, request: Request) -> str:
        async def answer() -> str:
            await asyncio.sleep(0.01)
            return "done"

        return await cancel_on_disconnect(request, answer())


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Watched, str]]:
    watched = Watched()
    with serve(watched.app) as url:
        yield watched, url


def test_a_stream_arrives_whole_with_its_headers(server: tuple[Watched, str]):
    """The headers that keep proxies from holding it back, and the caller's own."""
    reply = httpx.get(f"{server[1]}/stream/plain")

    assert reply.content == frame("one") + DONE
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-vc-version"] == "v1"


def test_a_failing_stream_ends_with_the_error(server: tuple[Watched, str]):
    """An error object, no `[DONE]`, and a proper end of the reply."""
    reply = httpx.get(f"{server[1]}/stream/problem")

    first, error = reply.text.strip().split("\n\n")
    assert first == "data: one"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "rate_limit_exceeded"


def test_a_bug_in_a_stream_tells_only_its_request_id(server: tuple[Watched, str]):
    """The same as in a plain reply."""
    reply = httpx.get(f"{server[1]}/stream/bug", headers={"x-request-id": "trace-9"})

    assert "trace-9" in reply.text
    assert "canary-secret" not in reply.text
    assert "[DONE]" not in reply.text


def test_silence_is_filled_with_comments(server: tuple[Watched, str]):
    """Between frames, never inside of one."""
    reply = httpx.get(f"{server[1]}/stream/silent?keep_alive_s=0.1")

    assert reply.text.replace(": keep-alive\n\n", "") == (frame("one") + DONE).decode()
    assert 2 <= reply.text.count(": keep-alive") <= 4


def test_a_stream_is_closed_when_its_client_goes_away(server: tuple[Watched, str]):
    """Within a second, and all of its `finally` runs."""
    watched, url = server
    watched.started.clear()
    with httpx.stream("GET", f"{url}/stream/endless") as reply:
        assert next(reply.iter_raw()) == frame("one")
        watched.started.wait(5)

    wait_until(lambda: watched.ended.get("endless") == "closed", timeout_s=1)


def test_work_is_cancelled_when_its_client_goes_away(server: tuple[Watched, str]):
    """Not streaming: the client closes its connection while it waits."""
    watched, url = server
    watched.started.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/work", json={"a": 1}, timeout=0.2)

    wait_until(lambda: watched.ended.get("work") == "cancelled", timeout_s=1)


def test_work_whose_client_waits_is_finished(server: tuple[Watched, str]):
    """Over one connection, again and again."""
    with httpx.Client() as http:
        replies = [http.get(f"{server[1]}/quick") for _ in range(3)]

    assert [reply.json() for reply in replies] == ["done"] * 3


def test_what_work_raises_passes_through():
    """The waiting around it changes nothing about it."""

    async def fail() -> None:
        raise Overloaded("Full.")

    async def never() -> dict[str, str]:
        await asyncio.sleep(60)
        raise AssertionError

    async def run() -> None:
        await cancel_on_disconnect(Request({"type": "http"}, never), fail())

    with pytest.raises(Overloaded):
        asyncio.run(run())


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_door_lets_in_as_much_as_it_holds():
    """The next one is refused, and let in once there is room again."""

    async def run() -> None:
        door = Admission(2)
        async with door.enter():
            async with door.enter():
                with pytest.raises(Overloaded):
                    async with door.enter():
                        raise AssertionError("there was no room")
            async with door.enter():
                assert door.inside == 2
        assert door.inside == 0

    asyncio.run(run())


def test_a_piece_larger_than_the_door_enters_alone():
    """Otherwise it would be told to come back for ever."""

    async def run() -> None:
        door = Admission(2)
        async with door.enter(answers=5):
            with pytest.raises(Overloaded):
                async with door.enter():
                    raise AssertionError("there was no room")

    asyncio.run(run())


def test_the_wait_is_computed_from_the_measured_rate():
    """Four things done in eight busy seconds: one place is free in two. Idle time does not count."""

    async def run() -> None:
        clock = Clock()
        door = Admission(1, clock=clock)
        for _ in range(4):
            async with door.enter():
                clock.now += 2
            clock.now += 100
        async with door.enter():
            with pytest.raises(Overloaded) as refused:
                async with door.enter():
                    raise AssertionError("there was no room")
            assert refused.value.retry_after_s == pytest.approx(2)
            assert door.wait_s(answers=1) == pytest.approx(2)

    asyncio.run(run())


def test_the_door_is_free_again_after_a_failure():
    """However the work inside ended."""

    async def run() -> None:
        door = Admission(1)
        with pytest.raises(ZeroDivisionError):
            async with door.enter():
                raise ZeroDivisionError
        assert door.inside == 0
        assert door.wait_s() == 0

    asyncio.run(run())


def test_a_promised_wait_comes_true():
    """A real queue of 50 ms jobs: who is told to wait finds room within half to twice the time."""

    async def run() -> list[float]:
        door, errors = Admission(4), []
        lane = asyncio.Semaphore(1)

        async def work() -> None:
            async with door.enter(), lane:
                await asyncio.sleep(0.05)

        tasks = {asyncio.create_task(work()) for _ in range(4)}
        await asyncio.sleep(0.12)
        for _ in range(6):
            while door.inside < 4:
                tasks.add(asyncio.create_task(work()))
                await asyncio.sleep(0)
            told, begun = door.wait_s(), time.monotonic()
            while door.inside == 4:
                await asyncio.sleep(0.001)
            errors.append(told / max(time.monotonic() - begun, 0.001))
        await asyncio.gather(*tasks)
        return errors

    ratios = sorted(asyncio.run(run()))

    assert 0.5 <= ratios[len(ratios) // 2] <= 2
