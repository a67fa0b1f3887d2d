"""Rows on disk that can be asked for by number: eight bytes of memory a row, whatever its size."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from vcllm.data.shapes import Row


class Spool:
    """Rows in a file without a name below `folder`; it is gone when the spool is closed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._starts = array("Q")

    def extend(self, rows: Iterable[Row]) -> None:
        self._file.seek(0, os.SEEK_END)
        for row in rows:
            self._starts.append(self._file.tell())
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Row:
        self._file.seek(self._starts[number])
        row: Row = json.loads(self._file.readline())
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
