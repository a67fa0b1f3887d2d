"""A reply of HTTP/1.1 as its bytes come: head, then body with back-pressure, and what can go wrong with either.

Knows of its connection only how to stop it, drop it and give it back; see `http_client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import httptools

HIGH_WATER = 256 * 1024
"""Bytes of a body that wait to be read before the server is made to wait."""
MAX_HEAD_BYTES = 64 * 1024


class NotThere(Exception):
    """No connection could be made."""


class Lost(Exception):
    """The connection ended, or what came was no HTTP, before the reply had begun."""


class BrokeOff(Exception):
    """The reply ended before it was complete."""


class Line(Protocol):
    """The connection a reply comes over."""

    def write(self, message: bytes) -> None: ...

    def pause(self, on: bool) -> None: ...

    def release(self, reusable: bool) -> None:
        """The reply is over; reusable: nothing more is to come of it."""
        ...


class Reply:
    """One reply. `close` gives its connection back, or drops it when more is to come; safe to repeat."""

    def __init__(self, line: Line, silence_s: float) -> None:
        """silence_s: longest wait for the next part."""
        self.status = 0
        self.headers: dict[str, str] = {}
        """By lower-case name; what was sent several times is joined by commas."""
        self._line = line
        self._silence_s = silence_s
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._waiting = 0
        """Bytes in the chunks."""
        self._head_bytes = 0
        self._begun = self._complete = self._closed = self._paused = False
        self._keep = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_complete(self) -> bool:
        """All of it has come."""
        return self._complete

    async def read(self) -> bytes:
        """The whole body. BrokeOff; TimeoutError after a long silence."""
        while not self._complete:
            self._pause(False)
            await self._wait()
        return self._take()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, all that is there at a time. Raises what `read` does."""
        while True:
            if self._chunks:
                yield self._take()
            elif self._complete:
                return
            else:
                await self._wait()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pause(False)
        self._line.release(self._complete and self._keep)

    async def begin(self, message: bytes) -> None:
        """Send the request and wait for the head. Lost; TimeoutError after a long silence."""
        self._line.write(message)
        while not self._begun:
            await self._wait()

    async def _wait(self) -> None:
        """Until something has happened; raises what went wrong before."""
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(self._silence_s, self._fail, TimeoutError("The server says nothing."))
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _take(self) -> bytes:
        taken = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        self._pause(False)
        return taken

    def _pause(self, on: bool) -> None:
        if on is not self._paused:
            self._paused = on
            self._line.pause(on)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> None:
        if self._failure is None and not self._complete:
            self._failure = failure
            self._wake()

    def receive(self, data: bytes) -> None:
        """What the connection brings."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._garbled(error)
        if not self._begun:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._garbled(ValueError("an endless head"))
        if self._chunks or self._complete or self._begun:
            self._wake()
        if self._waiting > HIGH_WATER:
            self._pause(True)

    def _garbled(self, error: Exception) -> None:
        self._keep = False
        self._fail(BrokeOff(str(error)) if self._begun else Lost(str(error)))

    def lose(self) -> None:
        """The connection has ended: so does a body without a length."""
        if self._begun and not self._complete and self._until_end:
            self._complete, self._keep = True, False
            self._wake()
        self._fail(BrokeOff("the connection was lost") if self._begun else Lost("the connection was lost"))

    @property
    def _until_end(self) -> bool:
        return "content-length" not in self.headers and "chunked" not in self.headers.get("transfer-encoding", "")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if not self._begun:  # not those after the last chunk
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._begun = True
            self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._chunks.append(body)
        self._waiting += len(body)

    def on_message_complete(self) -> None:
        if self._complete:
            self._keep = False  # more than was asked for
        elif self.status < 200:  # "go on" and the like: the reply is still to come
            self.headers.clear()
        else:
            self._complete = True
