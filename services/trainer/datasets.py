"""Dataset snapshots: JSONL files named by their sha256, so that a version's manifest says exactly what it saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vcllm.contracts.problems import BadRequest
from vcllm.stores.models import write_atomic

Row = dict[str, Any]


class Datasets:
    """Snapshots below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def freeze(self, rows: Iterable[Row]) -> str:
        """Write the rows once; their sha256."""
        content = to_jsonl(rows)
        name = hashlib.sha256(content).hexdigest()
        if not self.path(name).is_file():
            write_atomic(self.path(name), content)
        return name

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def rows(self, name: str) -> list[Row]:
        return [json.loads(line) for line in self.path(name).read_text().splitlines()]


def to_jsonl(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n" for row in rows)


def read_operator_data(folder: Path, name: str) -> list[Row]:
    """A JSONL file of the operator's; BadRequest names every faulty line at once."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise BadRequest(f"There is no data file '{name}' in {folder}. Put it there or correct the recipe.")
    rows, faults = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            faults.append(f"line {number}: not JSON ({error})")
            continue
        if fault := _fault(row):
            faults.append(f"line {number}: {fault}")
        rows.append(row)
    if faults or not rows:
        raise BadRequest(f"{name}: " + ("; ".join(faults[:20]) or "the file is empty") + ".")
    return rows


def _fault(row: object) -> str | None:
    if not isinstance(row, dict):
        return "must be an object"
    if isinstance(row.get("text"), str):
        return None
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return "needs 'text' or 'messages'"
    for index, turn in enumerate(messages):
        known = isinstance(turn, dict) and turn.get("role") in ("system", "user", "assistant")
        if not known or not isinstance(turn.get("content"), str):
            return f"messages/{index} needs a role (system, user, assistant) and a text as content"
    return None if messages[-1]["role"] == "assistant" else "the last message must be the assistant's"
