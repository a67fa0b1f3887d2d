"""The load of the serving benchmark: streamed chats over HTTP, a fixed number of them in flight, and when what came.

    python -m benchmarks.serving_load TASK.json        prints one line of JSON

It shares its cores with the server it measures, so it does little while the clock runs: it notes when bytes come and
counts pieces of text by their spelling; frames are parsed afterwards. One connection per request, for every server.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from vcllm.web.tokens import Signer

TEXT = re.compile(rb'"content":\s?"[^"]')
"""A piece of an answer: some text, not the empty text of a first frame."""
LONGEST_MATCH = 13
"""Bytes; a match may begin this far before what has just come."""


@dataclass(frozen=True)
class Load:
    """What one measurement asks of a server."""

    port: int
    bodies: list[dict[str, Any]]
    """Requests, in order."""
    concurrency: int
    secret: str | None = None
    """An Actor's internal token, by which each request is signed as it is sent."""
    timeout_s: float = 600.0


@dataclass
class Exchange:
    """One answer, as it came. Times are seconds on one clock."""

    at: int
    """Its place among the requests."""
    sent: float
    pieces: list[float] = field(default_factory=list)
    """When text came."""
    ended: float = 0.0
    raw: bytes = b""


class Caller(asyncio.Protocol):
    """Sends one request and notes what comes until the server has said all."""

    def __init__(self, at: int, request: bytes) -> None:
        self.request = request
        self.done: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self._exchange = Exchange(at, time.perf_counter())
        self._buffer = bytearray()
        self._looked_at = 0

    def connection_made(self, transport: Any) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._exchange.ended = now
        self._buffer += data
        start = max(self._looked_at, len(self._buffer) - len(data) - LONGEST_MATCH)
        for match in TEXT.finditer(self._buffer, start):
            self._exchange.pieces.append(now)
            self._looked_at = match.end()

    def connection_lost(self, error: Exception | None) -> None:
        self._exchange.raw = bytes(self._buffer)
        if not self.done.done():
            self.done.set_result(self._exchange)


async def run(load: Load) -> dict[str, Any]:
    """Keep `concurrency` requests in flight until all are answered."""
    requests = enumerate([http(load, body) for body in load.bodies])
    signer = None if load.secret is None else Signer(SecretStr(load.secret), "gateway")
    exchanges: list[Exchange] = []

    async def worker() -> None:
        for at, request in requests:
            exchanges.append(await ask(load, at, request if signer is None else signed(request, signer)))

    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(load.concurrency)))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "client_cpu_s": cpu, "answers": [asdict(answer(each)) for each in exchanges]}


async def ask(load: Load, at: int, request: bytes) -> Exchange:
    loop = asyncio.get_running_loop()
    transport, caller = await loop.create_connection(lambda: Caller(at, request), "127.0.0.1", load.port)
    try:
        return await asyncio.wait_for(caller.done, load.timeout_s)
    finally:
        transport.close()


def signed(request: bytes, signer: Signer) -> bytes:
    """With a token of now: one made at the start would have expired before a long measurement ends."""
    line, rest = request.split(b"\r\n", 1)
    return b"".join((line, b"\r\nauthorization: ", signer.header("actor").encode(), b"\r\n", rest))


def http(load: Load, body: dict[str, Any]) -> bytes:
    """The bytes of one request."""
    content = json.dumps(body, ensure_ascii=False).encode()
    headers = {
        "host": f"127.0.0.1:{load.port}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + content


@dataclass(frozen=True)
class Answer:
    """One answer, read."""

    at: int
    error: str | None
    """What came instead of a whole answer."""
    text: str
    num_tokens: int
    """By the server's own count."""
    num_prompt_tokens: int
    first_s: float
    """From sending to the first text."""
    last_s: float
    """From sending to the end."""
    gaps_s: list[float]
    """Between pieces of text; 0 where they came together."""


def answer(exchange: Exchange) -> Answer:
    """Read what came."""
    head, _, body = exchange.raw.partition(b"\r\n\r\n")
    frames = [json.loads(frame) for frame in frames_of(unchunked(body)) if frame != b"[DONE]"]
    choices = [choice for frame in frames for choice in frame.get("choices", [])]
    usage = next((frame["usage"] for frame in reversed(frames) if frame.get("usage")), {})
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    finish = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), None)
    whole = head.startswith(b"HTTP/1.1 200") and finish is not None and exchange.pieces and usage
    pieces = exchange.pieces or [exchange.ended]
    return Answer(
        at=exchange.at,
        error=None if whole else exchange.raw[-300:].decode(errors="replace"),
        text=text,
        num_tokens=usage.get("completion_tokens", 0),
        num_prompt_tokens=usage.get("prompt_tokens", 0),
        first_s=pieces[0] - exchange.sent,
        last_s=exchange.ended - exchange.sent,
        gaps_s=[later - earlier for earlier, later in zip(pieces, pieces[1:], strict=False)],
    )


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body; one that breaks off gives what there is."""
    content, at = bytearray(), 0
    while (line := body.find(b"\r\n", at)) > at:
        size = int(body[at:line].split(b";")[0], 16)
        content += body[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
    return bytes(content)


def frames_of(content: bytes) -> list[bytes]:
    """The data of server-sent events."""
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    return [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]


def main(file: Path) -> None:
    load = Load(**json.loads(file.read_text()))
    gc.disable()  # no pause of ours in somebody's latency; it ends soon
    print(json.dumps(asyncio.run(run(load))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
