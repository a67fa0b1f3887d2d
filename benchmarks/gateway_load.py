"""The load of the gateway benchmark: whole answers over kept connections, or many paced streams at once.

    python -m benchmarks.gateway_load TASK.json        prints one line of JSON

It shares a core with the upstream, so it parses as little as it can: a reply's length, or the end of its last chunk.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gateway_mock import content_length

FRAME_NUMBER = re.compile(rb'"content":\s?" (\d+)"')
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Task:
    """One measurement.

    concurrency: connections, each with one request at a time. streams: all opened within `ramp_s`.
    """

    port: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    concurrency: int = 1
    seconds: float = 5.0
    warm_s: float = 1.0
    """At the beginning, not counted."""
    streams: int = 0
    """More than 0: so many streams, once each, instead of whole answers."""
    ramp_s: float = 1.0
    frames: int = 64
    """Of a whole stream."""
    timeout_s: float = 30.0

    @property
    def request(self) -> bytes:
        content = json.dumps(self.body).encode()
        lines = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(content)}\r\n\r\n".encode() + content


class Caller(asyncio.Protocol):
    """One kept connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.arrivals: list[float] | None = None
        """When something came, where that is wanted."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.arrivals is not None:
            self.arrivals.append(time.perf_counter())
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or self.answer is None or self.answer.done():
            return
        head = bytes(self.buffer[:end])
        if b"chunked" in head.lower():
            complete = self.buffer.endswith(LAST_CHUNK)
        else:
            complete = len(self.buffer) - end - 4 >= content_length(head)
        if complete:
            self.answer.set_result((int(head[9:12]), bytes(self.buffer[end + 4 :])))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionResetError("closed in the middle of an answer"))

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Status and body."""
        self.buffer.clear()
        self.answer = self.loop.create_future()
        self.transport.write(request)
        return self.answer


async def connect(port: int) -> Caller:
    _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", port)
    return caller


async def whole_answers(task: Task) -> dict[str, Any]:
    """A closed loop: latencies in ms, answers per second, and what failed."""
    request, counted = task.request, list[float]()
    failed = 0
    begin = time.perf_counter() + task.warm_s
    end = begin + task.seconds

    async def loop() -> None:
        nonlocal failed
        caller = await connect(task.port)
        while (sent := time.perf_counter()) < end:
            try:
                async with asyncio.timeout(task.timeout_s):
                    status, _ = await caller.ask(request)
            except (OSError, TimeoutError):
                failed += 1
                caller = await connect(task.port)
                continue
            now = time.perf_counter()
            if status != 200:
                failed += 1
            elif begin <= sent and now <= end:
                counted.append(now - sent)
        caller.transport.close()

    await asyncio.gather(*(loop() for _ in range(task.concurrency)))
    counted.sort()
    return {
        "answers": len(counted),
        "failed": failed,
        "per_s": len(counted) / task.seconds,
        "p50_ms": 1000 * quantile(counted, 0.5),
        "p99_ms": 1000 * quantile(counted, 0.99),
    }


async def paced_streams(task: Task) -> dict[str, Any]:
    """Every stream once: frames that are missing or out of order, first arrivals and gaps between arrivals in ms."""
    request, first, gaps = task.request, [], []
    lost = broken = 0

    async def stream(number: int) -> None:
        nonlocal lost, broken
        await asyncio.sleep(task.ramp_s * number / task.streams)
        try:
            caller = await connect(task.port)
            caller.arrivals, sent = [], time.perf_counter()
            async with asyncio.timeout(task.timeout_s):
                status, body = await caller.ask(request)
        except (OSError, TimeoutError):
            broken += 1
            return
        caller.transport.close()
        numbers = [int(found) for found in FRAME_NUMBER.findall(body)]
        if status != 200 or b"data: [DONE]" not in body:
            broken += 1
        lost += task.frames - 1 - len(numbers) if numbers == sorted(set(numbers)) else task.frames
        first.append(caller.arrivals[0] - sent)
        gaps.extend(later - earlier for earlier, later in zip(caller.arrivals, caller.arrivals[1:], strict=False))

    await asyncio.gather(*(stream(number) for number in range(task.streams)))
    first.sort()
    gaps.sort()
    return {
        "streams": task.streams,
        "broken": broken,
        "lost_frames": lost,
        "first_p50_ms": 1000 * quantile(first, 0.5),
        "gap_p50_ms": 1000 * quantile(gaps, 0.5),
        "gap_p99_ms": 1000 * quantile(gaps, 0.99),
    }


def quantile(ordered: list[float], share: float) -> float:
    """Of sorted numbers; NaN of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    gc.freeze()
    print(json.dumps(uvloop.run(paced_streams(task) if task.streams else whole_answers(task))))


if __name__ == "__main__":
    main()
