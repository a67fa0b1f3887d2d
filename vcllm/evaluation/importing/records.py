"""Reads the files of public sets, record by record, and says where each came from when something is wrong with it.

JSON (a list, or an object of records or of lists), JSONL, CSV and Parquet. Byte order marks are dropped, at the
start of a file and inside keys, where a set was once saved with one. Knows no set.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcllm.contracts.problems import BadRequest

BOM = "\ufeff"
MAX_FIELD = 2**24
"""Characters of one CSV field: some sets keep whole answers in one."""
KEY = "key"
"""Where records of a JSON object keep the key they stood under."""


@dataclass(frozen=True)
class Record:
    """One entry of a file, as it stands there."""

    where: str
    """`file, line 3`."""
    values: Mapping[str, Any]

    def has(self, column: str) -> bool:
        return self.values.get(column) not in (None, "")

    def text(self, *columns: str) -> str:
        """The first of these columns that there is, without space around it; BadRequest when it is missing or empty."""
        column = next((column for column in columns if column in self.values), columns[0])
        value = self._value(column)
        if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
            raise self.fault(f"'{column}' should be a text, and is {_shown(value)}")
        return str(value).strip()

    def number(self, column: str) -> int:
        """A whole number, or the digits of one."""
        value = self._value(column)
        text = str(value).strip()
        if isinstance(value, bool) or not text.isdigit():
            raise self.fault(f"'{column}' should be a whole number from 0, and is {_shown(value)}")
        return int(text)

    def index(self, column: str, choices: Iterable[str]) -> int:
        """A number that counts one of the choices, from 0."""
        num, number = len(list(choices)), self.number(column)
        if number >= num:
            raise self.fault(f"'{column}' is {number}, but there are {num} options, counted from 0")
        return number

    def one_of(self, column: str, known: Iterable[str]) -> str:
        """A text that must be one of those known."""
        value, names = self.text(column), list(known)
        if value not in names:
            raise self.fault(f"'{column}' is {_shown(value)}, which is none of {', '.join(names)}")
        return value

    def texts(self, column: str) -> list[str]:
        """A list of texts."""
        value = self._value(column)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one.strip() for one in value):
            raise self.fault(f"'{column}' should be a list of texts, and is {_shown(value)}")
        return [one.strip() for one in value]

    def inner(self, column: str) -> Mapping[str, Any]:
        """An object inside the record."""
        value = self._value(column)
        if not isinstance(value, dict):
            raise self.fault(f"'{column}' should be an object, and is {_shown(value)}")
        return value

    def fault(self, what: str) -> BadRequest:
        return BadRequest(f"{self.where}: {what}.")

    def _value(self, column: str) -> Any:
        if column not in self.values:
            raise self.fault(
                f"there is no column '{column}'; found: {', '.join(map(str, self.values)) or 'none'}. "
                "Is this a data file of the set, as it was published"
            )
        return self.values[column]


def read_records(file: Path) -> Iterator[Record]:
    """Every record, in order; raises BadRequest for a file that cannot be read or holds none."""
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise BadRequest(f"{file} cannot be read: bring a file that ends in {', '.join(_READERS)}.")
    found = False
    if not file.is_file():
        raise BadRequest(f"There is no file {file}.")
    try:
        for record in reader(file):
            found = True
            yield record
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file} is not UTF-8 (byte {error.start + 1}). Save it as UTF-8.") from None
    if not found:
        raise BadRequest(f"{file} holds no records.")


def _jsonl(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield Record(where, _object(_json(line, where), where))


def _json_file(file: Path) -> Iterator[Record]:
    """A list of records; an object of records, or of lists of them, which keep their key as `key`."""
    content = _json(file.read_text(encoding="utf-8-sig"), str(file))
    if isinstance(content, list):
        for number, value in enumerate(content, start=1):
            where = f"{file}, entry {number}"
            yield Record(where, _object(value, where))
        return
    for key, value in _object(content, str(file)).items():
        for number, one in enumerate(value if isinstance(value, list) else [value], start=1):
            where = f"{file}, '{key}'" + (f", entry {number}" if isinstance(value, list) else "")
            yield Record(where, {KEY: key, **_object(one, where)})


def _csv(file: Path) -> Iterator[Record]:
    csv.field_size_limit(min(MAX_FIELD, sys.maxsize))
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or None in row.values():
                    columns = ", ".join(reader.fieldnames or [])
                    raise BadRequest(f"{where}: the line has another number of fields than the first: {columns}.")
                yield Record(where, {_clean(name): value for name, value in row.items()})
        except csv.Error as error:
            raise BadRequest(f"{file}, line {reader.line_num}: not CSV: {error}.") from None


def _parquet(file: Path) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise BadRequest(f"{file.name} needs pyarrow to be read: pip install 'vc-llm[data]'.") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(256):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{file}, row {number}", {_clean(name): value for name, value in row.items()})
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BadRequest(f"{file}, row {number + 1}: the file cannot be read from here on: {reason}.") from None


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json_file,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"{where}: not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from None
    except RecursionError:
        raise BadRequest(f"{where}: brackets are nested too deeply.") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: should be an object with the set's columns, and is {_shown(value)}.")
    return {_clean(name): one for name, one in value.items()}


def _clean(name: str) -> str:
    return name.replace(BOM, "").strip()


def _shown(value: Any) -> str:
    """A value, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
