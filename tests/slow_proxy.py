"""A TCP proxy that can delay what a server answers, as a network or an overloaded server would."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

STEP_S = 0.02


@dataclass
class SlowProxy:
    """In front of one port of loopback. `delay_s` may be changed at any time, and holds for what arrives after that."""

    target: int
    port: int = 0
    delay_s: float = 0.0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection is served by a task"
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                await asyncio.gather(self._pass(reader, back), self._answer(there, writer))
            finally:
                back.close()
        writer.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(1 << 16):
            sink.write(chunk)
            await sink.drain()
        sink.close()

    async def _answer(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """In order, each as late as was asked for when it came."""
        while chunk := await source.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            sink.write(chunk)
            await sink.drain()
        sink.close()

    async def run(self, ready: threading.Event, ended: threading.Event) -> None:
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(STEP_S)
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextmanager
def slow_proxy(target: int) -> Iterator[SlowProxy]:
    """Runs in a thread of its own."""
    proxy, ready, ended = SlowProxy(target), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(proxy.run(ready, ended)), daemon=True)
    thread.start()
    try:
        assert ready.wait(5), "the proxy did not start"
        yield proxy
    finally:
        ended.set()
        thread.join(5)
