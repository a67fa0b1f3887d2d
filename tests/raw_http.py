"""Requests that no client would send, written byte by byte."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

JSON = b"content-type: application/json"


@dataclass(frozen=True)
class Answer:
    """What came back until the server hung up."""

    status: int
    headers: dict[str, str]
    """By lower-case name; the last one of a name."""
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which has the four fields that every one has."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        return error


@contextmanager
def connected(url: str, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=timeout_s) as connection:
        yield connection


def ask(url: str, line: bytes, *headers: bytes, body: bytes = b"", length: int | None = None) -> Answer:
    """One request and its answer. line: method and target. length: what is declared; None: the body's own.

    ConnectionError when the server hangs up without a word.
    """
    named = {header.partition(b":")[0].lower() for header in headers}
    own = [b"connection: close"]
    if b"host" not in named:
        own.append(b"host: service")
    if not named & {b"content-length", b"transfer-encoding"} and (body or length is not None):
        own.append(b"content-length: %d" % (len(body) if length is None else length))
    with connected(url) as connection:
        connection.sendall(b"\r\n".join([line + b" HTTP/1.1", *own, *headers, b"", b""]))
        with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough, and may have said why
            connection.sendall(body)
        return read(connection)


def read(connection: socket.socket) -> Answer:
    """Until the server hangs up."""
    received = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    if not received:
        raise ConnectionError("the server hung up without a word")
    head, _, body = received.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = dict(_split(line) for line in rest)
    return Answer(int(first.split(" ")[1]), headers, body)


def chunked(pieces: Sequence[bytes]) -> bytes:
    """A body in chunks, whose length nobody declares."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()
