"""Reading server-sent events: bytes as they come in, whole events out, and no more memory than agreed."""

from __future__ import annotations

import re

LINE_END = re.compile(rb"\r\n|\r|\n")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TooLong(Exception):
    """An event is longer than its reader takes."""


class EventReader:
    """The `data` of events, however the bytes are cut; comments and all other fields are skipped."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of one event; TooLong for more."""
        self.max_bytes = max_bytes
        self._line = b""
        """Not known to be whole yet."""
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False
        self._after_return = False
        """The last piece ended in a carriage return: a line feed that follows belongs to it."""

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that this piece completes."""
        if self._after_return and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_return = piece.endswith(b"\r")
        *lines, self._line = LINE_END.split(self._line + piece)
        events = [event for line in lines if (event := self._take(line)) is not None]
        if self._size + len(self._line) > self.max_bytes:
            raise TooLong(f"An event is longer than {self.max_bytes} bytes.")
        return events

    def end(self) -> bytes | None:
        """What a server wrote that ended without the empty line; None: nothing."""
        line, self._line = self._line, b""
        return self._take(line) or self._take(b"")

    def _take(self, line: bytes) -> bytes | None:
        if not self._begun:
            self._begun, line = True, line.removeprefix(BYTE_ORDER_MARK)
        if not line:
            event, self._data, self._size = b"\n".join(self._data), [], 0
            return event or None
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
            if self._size > self.max_bytes:
                raise TooLong(f"An event is longer than {self.max_bytes} bytes.")
        return None
