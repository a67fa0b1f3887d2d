"""An HTTP/1.1 client for one server, as lean as the gateway's way to its upstreams needs it.

Parsing is httptools', as in uvicorn. It keeps connections and tells apart what a caller must know to try again: nobody
there, lost before the first byte, broken off after it. It follows no redirect, decodes nothing and sends only what it
is given. `benchmarks/gateway_clients.py` holds it against aiohttp and httpx. For one event loop.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from vcllm.web.http_reply import Lost, NotThere, Reply

CONNECT_S = 5.0

_LINE_BREAK = re.compile(r"[\r\n\0]")


class Server:
    """Connections to one address."""

    def __init__(
        self, url: str, *, host: str | None = None, silence_s: float = 600.0, keep_alive_s: float = 4.0
    ) -> None:
        """url: `http://` or `https://`, host and port. host: the `Host` header; None: the URL's.

        silence_s: longest wait for the next part of a reply. keep_alive_s: how long an idle connection is used again.
        """
        parsed = urlsplit(url)
        assert parsed.hostname is not None, f"'{url}' names no host"
        secure = parsed.scheme == "https"
        self._address = parsed.hostname, parsed.port or (443 if secure else 80)
        self._tls = ssl.create_default_context() if secure else None
        self._prefix = parsed.path.rstrip("/")
        self._host = host or parsed.netloc
        self._silence_s = silence_s
        self._keep_alive_s = keep_alive_s
        self._idle: deque[tuple[float, Connection]] = deque()
        self._open: set[Connection] = set()
        self.closed = False

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str], content: bytes | None = None
    ) -> Reply:
        """The head of the reply, with its body to come. NotThere, Lost; TimeoutError after a long silence.

        A connection that was kept may be lost because it was idle: then a new one is tried, so `Lost` is about the
        server.
        """
        message = self._message(method, path, headers, content)
        if (kept := self._idle_one()) is not None:
            with suppress(Lost):
                return await self._begin(kept, message)
        return await self._begin(await self._connect(), message)

    async def _begin(self, connection: Connection, message: bytes) -> Reply:
        connection.reply = reply = Reply(connection, self._silence_s)
        try:
            await reply.begin(message)
        except BaseException:
            reply.close()
            raise
        return reply

    async def close(self) -> None:
        """Replies that are still read break off."""
        self.closed = True
        self._idle.clear()
        for connection in list(self._open):
            connection.drop()
        while self._open:  # the loop tells them next
            await asyncio.sleep(0)

    def _message(self, method: str, path: str, headers: Mapping[str, str], content: bytes | None) -> bytes:
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if content is not None:
            lines.append(f"content-length: {len(content)}")
        head = "\r\n".join(lines)
        if len(_LINE_BREAK.findall(head)) != 2 * (len(lines) - 1):
            raise ValueError("A header of a request holds a line break.")
        return head.encode("latin-1") + b"\r\n\r\n" + (content or b"")

    def _idle_one(self) -> Connection | None:
        """The one used last; those that have been idle for too long are closed."""
        limit = time.monotonic() - self._keep_alive_s
        while self._idle and self._idle[0][0] < limit:
            self._idle.popleft()[1].drop()
        while self._idle:
            connection = self._idle.pop()[1]
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(Connection, *self._address, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            raise NotThere(type(error).__name__) from error
        self._open.add(connection)
        connection.when_free, connection.when_lost = self._give_back, self._open.discard
        return connection

    def _give_back(self, connection: Connection) -> None:
        if connection.is_open and not self.closed:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.drop()


class Connection(asyncio.Protocol):
    """One socket; whatever comes goes to the reply that is awaited, and without one it is closed."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.reply: Reply | None = None
        self.when_free: Callable[[Connection], None] = Connection.drop
        self.when_lost: Callable[[Connection], None] = Connection.drop

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def write(self, message: bytes) -> None:
        if self._transport is None:
            raise Lost("the connection was lost")
        self._transport.write(message)

    def pause(self, on: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if on else self._transport.resume_reading)()

    def release(self, reusable: bool) -> None:
        self.reply = None
        if reusable:
            self.when_free(self)
        else:
            self.drop()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.reply is None:
            self.drop()  # nobody asked
        else:
            self.reply.receive(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self.reply is not None:
            self.reply.lose()
        self.when_lost(self)
