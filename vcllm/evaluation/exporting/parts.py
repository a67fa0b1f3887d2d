"""What every export is made of: files to write, rows by language, and reasons why a row is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcllm.charter import LoadedCharter
from vcllm.contracts.base import Language, digest
from vcllm.contracts.bench import Row

TEMPLATES = Path(__file__).parent / "templates"
Taken = str | None
"""Why a row is left out; None: it is not."""
SEVERAL_TURNS = "because the tool asks one turn only"
CHOICES = "because multiple choice is scored by rule, by `vcllm eval` itself"


@dataclass(frozen=True)
class Part:
    """One file of an export."""

    name: str
    text: str


def program(name: str, as_name: str | None = None) -> Part:
    """A Python file that is the same in every export. It is kept as text: its imports are the other tool's."""
    return Part(as_name or name, (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8"))


def json_lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def judged_by(charter: LoadedCharter) -> str:
    """Hash of what a judge takes from a charter: its principles and its rubric. Cards may change without harm."""
    principles = [principle.model_dump(mode="json") for principle in charter.charter.principles]
    return digest([principles, charter.rubric.model_dump(mode="json")])


def by_language(rows: Sequence[Row]) -> dict[Language, list[Row]]:
    """Only languages that there are rows in."""
    found = {language: [row for row in rows if row.lang is language] for language in Language}
    return {language: some for language, some in found.items() if some}


def takes_single_turns(row: Row) -> Taken:
    return SEVERAL_TURNS if len(row.prompt) > 1 else None


def takes_open_questions(row: Row) -> Taken:
    return CHOICES if row.choices else takes_single_turns(row)
