"""Connections with bounds: an endless or dripping head ends, everything else is served as before."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from tests.servers import wait_until
from vcllm.web.connections import MOST_PIPELINED, SERVED, BoundedProtocol


class Quick(BoundedProtocol):
    """With bounds that a test can wait for."""

    head_s = 0.3
    max_head_bytes = 2048
    reader_s = 0.5


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body, after as many tenths of a second as the path says."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message["body"])
        more = message["more_body"]
    if scope["path"] == "/endless":
        await endless(receive, send)
        return
    await asyncio.sleep(int(scope["path"][1:] or 0) / 10)
    text = str(length).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


WRITING: list[object] = []
"""An entry for each endless answer that is still written."""


async def endless(receive: Any, send: Any) -> None:
    """Written until its reader has gone."""
    gone = asyncio.ensure_future(receive())
    WRITING.append(gone)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not gone.done():
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await asyncio.sleep(0)
    WRITING.remove(gone)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", **{**SERVED, "http": Quick}))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def caller(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def everything(caller: socket.socket) -> bytes:
    """Until the server hangs up."""
    received = b""
    while part := caller.recv(65536):
        received += part
    return received


def error_code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


def test_a_request_is_served(caller: socket.socket):
    """The head at once, the body after the time a head may take."""
    caller.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nab")
    time.sleep(0.5)
    caller.sendall(b"cde")

    assert everything(caller).endswith(b"\r\n\r\n5")


def test_an_answer_may_take_its_time(caller: socket.socket):
    """The bound is for the head alone."""
    caller.sendall(b"GET /5 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    assert everything(caller).endswith(b"\r\n\r\n0")


def test_a_head_that_drips_ends(caller: socket.socket):
    """However busily its bytes come one by one."""
    begun = time.monotonic()
    caller.sendall(b"GET / HTTP/1.1\r\n")
    caller.settimeout(0.05)
    answer = b""
    while time.monotonic() - begun < 3 and not answer:
        try:
            caller.sendall(b"x")
            answer = caller.recv(65536)
        except TimeoutError:
            continue

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_code(answer) == "request_timeout"
    assert time.monotonic() - begun < 1.5


def test_a_connection_that_says_nothing_is_closed(caller: socket.socket):
    """There is nobody to tell why."""
    assert everything(caller) == b""


def test_an_endless_head_ends(caller: socket.socket):
    """Header after header."""
    caller.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(400)))
    answer = everything(caller)

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert error_code(answer) == "request_header_fields_too_large"


def test_the_second_request_of_a_connection_has_the_same_bounds(caller: socket.socket):
    """Kept connections are no way around them."""
    caller.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")
    caller.sendall(b"GET / HTTP/1.1\r\n")

    assert everything(caller).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_kept_between_requests(caller: socket.socket):
    """As long as uvicorn keeps it, which is longer than a head may take."""
    for _ in range(2):
        caller.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.5)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=["text", "version", "no-path", "no-colon", "nul", "two-lengths", "length-and-chunks", "tls"],
)
def test_what_is_no_request_is_refused_in_words(caller: socket.socket, sent: bytes):
    """With the error body of everything else."""
    caller.sendall(sent)
    answer = everything(caller)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_code(answer) == "bad_request"


def test_requests_that_wait_on_one_connection_are_few(caller: socket.socket):
    """More of them end it, before they fill the memory; a handful is answered one after the other."""
    request = b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\n"
    caller.sendall(request * 3 + b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert everything(caller).count(b"HTTP/1.1 200 ") == 4


def test_too_many_requests_that_wait_on_one_connection_end_it(caller: socket.socket):
    """Nothing is said: it would be taken for the answer to the first."""
    with suppress(ConnectionError):
        caller.sendall(b"GET /5 HTTP/1.1\r\nhost: x\r\n\r\n" * (MOST_PIPELINED + 2))
        assert everything(caller) == b""
    with pytest.raises(OSError):
        for _ in range(50):
            caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(0.01)


def test_who_leaves_with_a_second_request_behind_the_first_has_left_both(caller: socket.socket):
    """The first is told, too: uvicorn alone tells only the newest."""
    caller.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n" + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    caller.recv(1000)
    wait_until(lambda: len(WRITING) == 1)
    caller.close()

    wait_until(lambda: not WRITING, timeout_s=2)


def test_a_reader_that_takes_nothing_is_let_go(caller: socket.socket):
    """Else it would hold the place of its answer for ever; one that reads on is left alone, however long it takes."""
    caller.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert caller.recv(1 << 20)
    assert len(WRITING) == 1

    wait_until(lambda: not WRITING, timeout_s=3)
