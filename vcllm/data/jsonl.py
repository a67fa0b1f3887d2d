"""JSONL, a line at a time: what is not one strict JSON value on one UTF-8 line is a fault, never a traceback.

Stricter than Python's `json`: no NaN, no infinity, no key twice in one object. A byte order mark and CRLF are taken;
blank lines are no rows.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vcllm.data.faults import printable

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is a fault: one line may not take the memory of a whole file."""
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Found:
    """One row as it stands in its file: a JSON value, or the reason why there is none."""

    where: str
    value: Any = None
    fault: str | None = None


def read_jsonl(file: Path) -> Iterator[Found]:
    number = 0
    try:
        with file.open("rb") as handle:
            for number, line in enumerate(_lines(handle), start=1):
                where = f"line {number}"
                if line is None:
                    yield Found(where, fault=f"is longer than {MAX_LINE_BYTES // 2**20} MiB")
                elif number == 1 and line.startswith(UTF16):
                    yield Found(where, fault="the file is UTF-16: save it as UTF-8")
                    return
                elif content := line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip():
                    yield parse(content, where)
    except OSError as error:
        yield Found(f"line {number + 1}", fault=f"the file cannot be read from here on: {error.strerror or error}")


def parse(content: bytes, where: str) -> Found:
    """One line's value, or what is wrong with it."""
    try:
        text = content.decode()
        return Found(where, json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant))
    except UnicodeDecodeError as error:
        return Found(where, fault=f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start + 1}")
    except json.JSONDecodeError as error:
        return Found(where, fault=f"not JSON: {error.msg} at character {error.colno}")
    except RecursionError:
        return Found(where, fault="not usable: brackets are nested too deeply")
    except ValueError as error:  # our own refusals, and numbers of thousands of digits
        reason = str(error) if isinstance(error, _Refused) else "a number has too many digits"
        return Found(where, fault=f"not strict JSON: {reason}")


class _Refused(ValueError):
    """Python would take it, the JSON standard does not."""


def _lines(handle: BinaryIO) -> Iterator[bytes | None]:
    """Each line; None for one that is too long to be held."""
    while line := handle.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(MAX_LINE_BYTES)
        yield None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"the key '{printable(twice)}' stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _Refused(f"{name} is not a JSON value")
