"""An upstream that costs next to nothing: canned answers after a fixed wait, or frames at a fixed pace.

    python -m benchmarks.gateway_mock PORT [PORT ...] [--delay-ms 20] [--slots 0] [--frames 64] [--pace-ms 20]

It speaks as an Actor, and as any server of the OpenAI API, does. Each port is a replica: with `--slots` it works on so
many answers at once, as a device would, and the others wait in line. The text of a frame is its number, so that whoever
reads the stream can tell whether one is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop

TEXT = "A fair answer looks at all sides. " * 8


def canned(version: str) -> bytes:
    """A whole answer with its head."""
    reply = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": version,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 32, "completion_tokens": 64, "total_tokens": 96},
    }
    return response(json.dumps(reply).encode(), version)


def response(body: bytes, version: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-vc-version: {version}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def frame(number: int, version: str, frames: int) -> bytes:
    """Frame `number` of a stream, from 0, as one HTTP chunk; the last one ends the stream."""
    delta = {"role": "assistant", "content": ""} if number == 0 else {"content": f" {number}"}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == frames - 1 else None}
    body = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": version, "choices": [choice]}
    text = f"data: {json.dumps(body)}\n\n".encode()
    if number == frames - 1:
        text += b"data: [DONE]\n\n"
    return f"{len(text):x}\r\n".encode() + text + b"\r\n" + (b"0\r\n\r\n" if number == frames - 1 else b"")


class Mock:
    """What the connections of a port share."""

    def __init__(self, delay_s: float, slots: int, frames: int, pace_s: float, version: str) -> None:
        """slots: 0: as many at once as are asked for."""
        self.delay_s = delay_s
        self.slots = slots
        self.busy = 0
        self.line: deque[Callable[[], None]] = deque()
        self.pace_s = pace_s
        self.whole = canned(version)
        self.health = response(b'{"status": "ok"}', version)
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        self.stream_head = f"{head}x-vc-version: {version}\r\n\r\n".encode()
        self.frames = [frame(number, version, frames) for number in range(frames)]

    def work(self, done: Callable[[], None]) -> None:
        """Call `done` after the wait, as soon as there is a slot for it."""
        if self.slots and self.busy >= self.slots:
            self.line.append(done)
            return
        self.busy += 1
        asyncio.get_running_loop().call_later(self.delay_s, self.finish, done)

    def finish(self, done: Callable[[], None]) -> None:
        self.busy -= 1
        if self.line:
            self.work(self.line.popleft())
        done()


class Connection(asyncio.Protocol):
    """One request at a time, as HTTP/1.1 without pipelining has it."""

    def __init__(self, mock: Mock) -> None:
        self.mock = mock
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.gone = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < content_length(head):
            return
        self.buffer = b""
        if head.startswith(b"GET"):
            self.transport.write(self.mock.health)
        elif b'"stream":true' in body.replace(b" ", b""):
            self.mock.work(self.begin_stream)
        else:
            self.mock.work(partial(self.write, self.mock.whole))

    def write(self, data: bytes) -> None:
        if not self.gone:
            self.transport.write(data)

    def begin_stream(self) -> None:
        self.write(self.mock.stream_head)
        self.next_frame(0, self.loop.time())

    def next_frame(self, number: int, due: float) -> None:
        if self.gone:
            return
        self.transport.write(self.mock.frames[number])
        if number + 1 < len(self.mock.frames):
            due += self.mock.pace_s
            self.loop.call_at(due, self.next_frame, number + 1, due)


def content_length(head: bytes) -> int:
    """0 when there is none."""
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def serve(ports: list[int], make: Callable[[], Mock]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        answer = partial(Connection, make())
        await loop.create_server(answer, "127.0.0.1", port, backlog=2048, reuse_address=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ports", type=int, nargs="+", metavar="PORT")
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--pace-ms", type=float, default=20.0)
    parser.add_argument("--version", default="mock-1")
    args = parser.parse_args()
    make = partial(Mock, args.delay_ms / 1000, args.slots, args.frames, args.pace_ms / 1000, args.version)
    uvloop.run(serve(args.ports, make))


if __name__ == "__main__":
    main()
