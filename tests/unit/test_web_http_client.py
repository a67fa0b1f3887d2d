"""The client of the hot path: kept connections, bodies with back-pressure, and what can go wrong, each by its name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import pytest

from vcllm.web.http_client import Server
from vcllm.web.http_reply import HIGH_WATER, BrokeOff, Lost, NotThere

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEADERS = {"x-one": "1"}

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that answers as it is told, and what it was sent."""

    def __init__(self, answer: Answer | bytes) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if b"content-length: " in head:
                    await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                if isinstance(self.answer, bytes):
                    writer.write(self.answer)
                else:
                    await self.answer(head, writer)
                await writer.drain()


@asynccontextmanager
async def asked(answer: Answer | bytes, **options: float) -> AsyncIterator[tuple[Server, Peer]]:
    peer, handlers = Peer(answer), set[asyncio.Task[None]]()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.create_task(peer.serve(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as listening:
        server = Server(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", **options)
        try:
            yield server, peer
        finally:
            await server.close()
            for handler in handlers:
                handler.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)
            await asyncio.sleep(0)


def run(work: Callable[[Server, Peer], Awaitable[None]], answer: Answer | bytes = OK, **options: float) -> None:
    async def main() -> None:
        async with asyncio.timeout(10), asked(answer, **options) as (server, peer):
            await work(server, peer)

    asyncio.run(main())


async def get(server: Server) -> bytes:
    reply = await server.request("GET", "/", headers=HEADERS)
    try:
        return await reply.read()
    finally:
        reply.close()


def test_a_request_is_sent_as_it_is_given():
    """Its method, path, headers and body, the length of the body, and nothing else."""

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("POST", "/v1/x", headers=HEADERS, content="你好".encode())
        assert (reply.status, reply.headers, await reply.read()) == (200, {"content-length": "2"}, b"ok")
        first, *lines = peer.heads[0].decode().rstrip().split("\r\n")
        assert first == "POST /v1/x HTTP/1.1"
        assert lines == [f"host: {server._host}", "x-one: 1", "content-length: 6"]

    run(work)


@pytest.mark.parametrize("value", ["a\r\nx-two: 2", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_bring_another_line(value: str):
    """Whatever a client may have sent that ends up in one."""

    async def work(server: Server, peer: Peer) -> None:
        with pytest.raises(ValueError, match="line break"):
            await server.request("GET", "/", headers={"x": value})
        assert not peer.heads

    run(work)


def test_connections_are_kept():
    """Ten requests in turn share one, ten at once have ten."""

    async def work(server: Server, peer: Peer) -> None:
        for _ in range(10):
            assert await get(server) == b"ok"
        assert peer.connections == 1
        await asyncio.gather(*(get(server) for _ in range(10)))
        assert peer.connections <= 11

    run(work)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmore",
    ],
    ids=["closing", "old", "more than asked"],
)
def test_a_connection_that_cannot_be_trusted_is_not_kept(answer: bytes):
    """What comes of it would be taken for the next answer."""

    async def work(server: Server, peer: Peer) -> None:
        for _ in range(3):
            assert await get(server) == b"ok"
        assert peer.connections == 3

    run(work, answer)


def test_a_connection_idle_for_too_long_is_not_used_again():
    """The server would close it under the request."""

    async def work(server: Server, peer: Peer) -> None:
        await get(server)
        await asyncio.sleep(0.1)
        await get(server)
        assert peer.connections == 2

    run(work, keep_alive_s=0.05)


def test_a_reply_that_is_left_frees_its_connection():
    """Half a body was read: the other half must not become the next answer."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha")

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("GET", "/", headers={})
        reply.close()
        reply.close()
        peer.answer = OK
        assert await get(server) == b"ok"
        assert peer.connections == 2

    run(work, answer)


@pytest.mark.parametrize("seed", range(20))
def test_a_body_is_the_same_however_it_is_cut(seed: int):
    """Chunks of any size, sent in pieces of any size."""
    chance = random.Random(seed)
    body = chance.randbytes(3000)
    message = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    rest = body
    while rest:
        part, rest = rest[: (cut := chance.randint(1, 400))], rest[cut:]
        message += b"%x\r\n" % len(part) + part + b"\r\n"
    message += b"0\r\n\r\n"

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        rest = message
        while rest:
            part, rest = rest[: (cut := chance.randint(1, 300))], rest[cut:]
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("GET", "/", headers={})
        assert b"".join([chunk async for chunk in reply.chunks()]) == body
        reply.close()
        assert await get(server) == body
        assert peer.connections == 1

    run(work, answer)


def test_a_reader_that_is_slow_holds_the_server_up():
    """No more waits here than the high-water mark and what one read brings."""
    written = 0

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
        for _ in range(500):
            writer.write(b"x" * 100_000)
            await writer.drain()
            written += 100_000

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("GET", "/", headers={})
        await asyncio.sleep(0.3)
        assert written < 20_000_000
        assert reply._waiting < HIGH_WATER + 512 * 1024
        assert sum([len(chunk) async for chunk in reply.chunks()]) == 50_000_000

    run(work, answer)


def test_a_long_body_that_nobody_read_leaves_a_connection_that_works():
    """All of it had come, more than may wait: the next answer must not wait for ever behind it."""
    length = HIGH_WATER + 1  # however it is cut, only the last piece is too much
    long = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length + b"x" * length

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("GET", "/", headers={})
        while not reply.is_complete:
            await asyncio.sleep(0.01)
        reply.close()
        peer.answer = OK
        assert await get(server) == b"ok"

    run(work, long, silence_s=1.0)


def test_informational_replies_are_passed_over():
    """The one that was asked for comes after them."""
    answer = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("GET", "/", headers={})
        assert (reply.status, reply.headers, await reply.read()) == (200, {"content-length": "2"}, b"ok")

    run(work, answer)


def test_a_body_without_a_length_ends_with_its_connection():
    """As HTTP/1.0 has it."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async def work(server: Server, peer: Peer) -> None:
        assert await get(server) == b"all of it"

    run(work, answer)


def test_nobody_is_there():
    """Nothing listens at the port."""

    async def main() -> None:
        with pytest.raises(NotThere):
            await Server("http://127.0.0.1:1").request("GET", "/", headers={})

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 O", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000],
    ids=["nothing", "half a head", "no HTTP", "endless head"],
)
def test_what_ends_before_the_reply_has_begun_is_lost(answer: bytes):
    """The caller may ask again."""

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async def work(server: Server, peer: Peer) -> None:
        with pytest.raises(Lost):
            await server.request("GET", "/", headers={})

    run(work, reply)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense",
    ],
    ids=["short", "no last chunk", "no chunk"],
)
def test_what_ends_in_the_middle_breaks_off(answer: bytes):
    """What has come is given out first."""

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async def work(server: Server, peer: Peer) -> None:
        reply = await server.request("GET", "/", headers={})
        seen = []
        with pytest.raises(BrokeOff):
            seen += [chunk async for chunk in reply.chunks()]
        reply.close()

    run(work, reply)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"], ids=["head", "body"])
def test_silence_ends(sent: bytes):
    """Before the head as well as in the body."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await asyncio.sleep(5)

    async def work(server: Server, peer: Peer) -> None:
        with pytest.raises(TimeoutError):
            await get(server)

    run(work, answer, silence_s=0.1)


def test_a_request_that_is_cancelled_hangs_up():
    """Nobody reads what would come; the next request has a connection of its own."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def work(server: Server, peer: Peer) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await server.request("GET", "/", headers={})
        await asyncio.sleep(0)
        assert not server._open
        peer.answer = OK
        assert await get(server) == b"ok"

    run(work, answer)
