"""Parquet and Arrow files, a batch at a time, by pyarrow.

A table has no absent values, only null ones: null keys are left out, so that a row reads as it would in JSONL.
pyarrow is imported on first use: most runs never need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vcllm.contracts.problems import BadRequest
from vcllm.data.jsonl import Found

BATCH_ROWS = 256


def read_parquet(file: Path) -> Iterator[Found]:
    arrow = _pyarrow(file)
    from pyarrow import parquet

    yield from _rows(lambda: parquet.ParquetFile(file, pre_buffer=False).iter_batches(BATCH_ROWS), arrow)


def read_arrow(file: Path) -> Iterator[Found]:
    """An Arrow IPC stream, as `datasets` writes with `save_to_disk`."""
    arrow = _pyarrow(file)
    yield from _rows(lambda: arrow.ipc.open_stream(arrow.memory_map(str(file))), arrow)


def _rows(open_batches: Any, arrow: Any) -> Iterator[Found]:
    number = 0
    try:
        for batch in open_batches():
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for found in _values(batch.slice(start, BATCH_ROWS)):
                    number += 1
                    yield Found(f"row {number}", found.value, found.fault)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        yield Found(f"row {number + 1}", fault=f"the file cannot be read from here on: {reason}")


def _values(batch: Any) -> Iterator[Found]:
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        yield from _one_by_one(batch)
        return
    for value in values:
        yield Found("", _without_nulls(value))


def _one_by_one(batch: Any) -> Iterator[Found]:
    """For the batch in which a text is not UTF-8: only that row is lost."""
    for number in range(batch.num_rows):
        try:
            yield Found("", _without_nulls(batch.slice(number, 1).to_pylist()[0]))
        except UnicodeDecodeError as error:
            yield Found("", fault=f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start + 1}")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise BadRequest(
            f"{file.name} needs pyarrow to be read: pip install 'vc-llm[data]', or save it as JSONL."
        ) from None
    return pyarrow
