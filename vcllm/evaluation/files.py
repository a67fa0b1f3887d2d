"""Lines of JSON at the borders of `vcllm eval`: appended one by one, found again after a kill, never twice.

A line counts once it ends with a newline; what a killed process left of a line is cut off when the file is opened.
Readers may look at any time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TextIO, TypeVar

from pydantic import ValidationError

from vcllm.contracts.base import Contract
from vcllm.contracts.problems import BadRequest

R = TypeVar("R", bound=Contract)


def read_lines(file: Path, model: type[R], *, by_hand: bool = False) -> Iterator[R]:
    """The rows of a file; none where there is no file. Raises BadRequest for a line that is not such a row.

    by_hand: people and their tools wrote it, so that the last line counts even if it does not end with a newline.
    """
    if not file.exists():
        return
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not by_hand and not line.endswith(b"\n"):
                return
            if line.strip():
                yield _row(model, line, f"{file}, line {number}")


def write_lines(file: Path, rows: Iterable[Contract]) -> None:
    """Replace the file, as a whole or not at all."""
    with _replacing(file) as stream:
        for row in rows:
            stream.write(row.model_dump_json(exclude_defaults=True) + "\n")


def replace_text(file: Path, text: str) -> None:
    """Replace the file, as a whole or not at all."""
    with _replacing(file) as stream:
        stream.write(text)


@contextmanager
def _replacing(file: Path) -> Iterator[TextIO]:
    """Readers see the old file or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


class Appender(Generic[R]):
    """The one writer of a file: what was there is kept by key, new rows go to the end."""

    def __init__(self, file: Path, model: type[R]) -> None:
        self.file = file
        self.model = model
        self.rows: dict[str, R] = {}
        """By key."""

    def __enter__(self) -> Self:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.file.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise BadRequest(
                f"{self.file} is being written by another run: wait for it or choose another folder"
            ) from None
        try:
            self._cut_torn_line()
            self.rows = {row.key: row for row in read_lines(self.file, self.model)}  # type: ignore[attr-defined]
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._stream.fileno())
        self._stream.close()

    def append(self, row: R, *, again: bool = False) -> None:
        """Written at once. A key that is there already is left as it is; again: the new row counts from now on."""
        key = row.key  # type: ignore[attr-defined]
        if key in self.rows and not again:
            return
        self._stream.write(row.model_dump_json(exclude_defaults=True).encode() + b"\n")
        self._stream.flush()
        self.rows[key] = row

    def _cut_torn_line(self) -> None:
        self._stream.seek(0)
        content = self._stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._stream.truncate(whole)
        self._stream.seek(0, os.SEEK_END)


def _row(model: type[R], line: bytes, where: str) -> R:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(step) for step in first["loc"]) or "the line"
        raise BadRequest(f"{where}: {at}: {first['msg']}. Correct the line or remove it.") from None
