"""Receives a multipart form with one file, piece by piece: the file goes to the disk as it comes, never into memory.

The form is read by python-multipart, whose callbacks are turned into a list of what one piece of the body brought.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from anyio import to_thread
from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from vcllm.contracts.problems import BadRequest
from vcllm.stores.files import Incoming

MAX_FIELD_BYTES = 4096
"""Of a part that is not the file."""
MAX_HEADER_BYTES = 8192
"""Of one part's headers."""
MAX_PARTS = 16
MAX_OVERHEAD = MAX_PARTS * (MAX_FIELD_BYTES + MAX_HEADER_BYTES)
"""What a form may hold beside the file."""
WRITTEN_AT_ONCE = 1 << 20


class TooLarge(BadRequest):
    """The file is larger than this server takes."""

    status = 413
    code = "request_too_large"


@dataclass
class Form:
    """What came beside the file's content."""

    filename: str | None = None
    """As its sender calls it, without folders; None: there was no file."""
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_bytes: int = 0
    name: str = ""
    is_file: bool = False
    value: bytearray = field(default_factory=bytearray)


class _Parts:
    """Follows the parser: collects small fields, and the file's bytes that have not been written yet."""

    def __init__(self, boundary: bytes) -> None:
        self.form = Form()
        self.waiting = bytearray()
        self.is_complete = False
        self._num_parts = 0
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._grow(self._header[0], data[start:end]),
                "on_header_value": lambda data, start, end: self._grow(self._header[1], data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """BadRequest where the body is no such form."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _no_form() from error

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise BadRequest(f"The form has more than {MAX_PARTS} parts. Send `file` and `purpose`.")
        self._part, self._header = _Part(), (bytearray(), bytearray())

    def _grow(self, text: bytearray, more: bytes) -> None:
        self._part.header_bytes += len(more)
        if self._part.header_bytes > MAX_HEADER_BYTES:
            raise BadRequest("A part of the form has headers that are too long.")
        text += more

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        self._part.is_file = self._part.name == "file"
        if not self._part.is_file:
            return
        if self.form.filename is not None:
            raise BadRequest("The form has more than one file. Send them one by one.", param="file")
        self.form.filename = _display_name(options.get(b"filename", b""))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.waiting += memoryview(data)[start:end]
            return
        if len(self._part.value) + end - start > MAX_FIELD_BYTES:
            raise BadRequest("A field of the form is too long.", param=self._part.name[:60])
        self._part.value += data[start:end]

    def _end(self) -> None:
        if not self._part.is_file:
            self.form.fields[self._part.name] = self._part.value.decode("utf-8", "replace")

    def _complete(self) -> None:
        self.is_complete = True


async def receive(request: Request, incoming: Incoming, max_bytes: int) -> Form:
    """Write the form's file to `incoming`; the rest of the form. BadRequest where the body is none, or not whole."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise _no_form()
    parts = _Parts(options[b"boundary"])
    async for chunk in request.stream():
        parts.feed(chunk)
        if incoming.num_bytes + len(parts.waiting) > max_bytes:
            raise TooLarge(f"The file has more than {max_bytes:,} bytes, the most this server takes. Split it.")
        if len(parts.waiting) >= WRITTEN_AT_ONCE:
            await _write(incoming, parts)
    if not parts.is_complete:
        raise _no_form()
    await _write(incoming, parts)
    return parts.form


async def _write(incoming: Incoming, parts: _Parts) -> None:
    await to_thread.run_sync(incoming.write, bytes(parts.waiting))
    parts.waiting.clear()


def _no_form() -> BadRequest:
    return BadRequest("Send a whole multipart/form-data body with the parts `file` and `purpose`.", param="file")


def _display_name(sent: bytes) -> str:
    """For people: no folders, no control characters, not too long."""
    name = sent.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in name if letter.isprintable())[:255] or "unnamed.jsonl"
