"""HTTP connections with bounds: how long a request's head may be, and how long it may take to arrive.

uvicorn's protocol waits for a head for ever and keeps all of it. Whatever it cannot read is refused with the same error
body as everything else. How many requests may wait on one connection, and how long a reader may take nothing, is
bounded as well. What comes after the head is bounded in `body`, as long as somebody reads it; what still comes
once the reply has gone out is bounded here.
"""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vcllm.contracts.problems import error_body

HEAD_S = 10.0
"""For a request's head, from the connection or the request's first byte on."""
MAX_HEAD_BYTES = 64 * 1024
"""Looked at after each read, so that one read (256 KiB) more may come."""
MOST_PIPELINED = 8
"""Requests that may wait on one connection for the answer to another."""
READER_S = 60.0
"""A reader that does not take what it was sent, some 48 KiB of it in this time, is let go: its answer holds a place."""

_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    head_s = HEAD_S
    max_head_bytes = MAX_HEAD_BYTES
    reader_s = READER_S

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer: TimerHandle | None = None
        self._rest_timer: TimerHandle | None = None
        self._reader_timer: TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        self._rest_is_over()
        self.resume_writing()
        # uvicorn tells only the newest request; the one that is worked on may be before it.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is None:
            self._bound_rest()
            return
        self._num_head_bytes += len(data)
        if self._num_head_bytes > self.max_head_bytes:
            self.refuse(431, f"The head of the request has more than {self.max_head_bytes} bytes. Send fewer headers.")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("more requests than may wait")  # the parser stops, and `send_400_response` is called
        super().on_message_begin()
        self._rest_is_over()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._owes_another:  # it would be taken for the answer to another request, or stand in the middle of it
            self.transport.abort()
            return
        self.refuse(400, "This is not an HTTP request that can be read. Check its first line and its headers.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self._reader_timer or self.loop.call_later(self.reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _owes_another(self) -> bool:
        """A request before what is read now is not answered yet."""
        running = self._running
        if running is None or running.response_complete:
            return False
        return running.response_started or not running.more_body

    def refuse(self, status: int, message: str) -> None:
        """Say why, and hang up."""
        self._head_is_here()
        if self.transport.is_closing():
            return
        body = json.dumps(error_body(message, "invalid_request_error", _REASONS[status].lower().replace(" ", "_")))
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        self.transport.close()

    def _await_head(self) -> None:
        self._num_head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_s, self._too_slow)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _bound_rest(self) -> None:
        """Bytes after the reply that begin no request: the rest of a refused body, or an empty line.

        They are read, because a connection that is closed under its sender may lose the reply. But uvicorn stops its
        own clock for an idle connection at each of them, and so would keep this one for as long as any come.
        """
        answered = self.cycle is not None and self.cycle.response_complete
        if answered and self._rest_timer is None and not self.transport.is_closing():
            self._rest_timer = self.loop.call_later(self.head_s, self.transport.close)

    def _rest_is_over(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _too_slow(self) -> None:
        if self._num_head_bytes:
            self.refuse(408, f"The head of the request did not arrive within {self.head_s:g} s. Send it faster.")
        else:
            self._head_timer = None
            self.transport.close()


SERVED: dict[str, Any] = {
    "http": BoundedProtocol,
    "loop": "uvloop",
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "server_header": False,
}
"""Options of `uvicorn.Config` that all services share."""
