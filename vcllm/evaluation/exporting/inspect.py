"""To inspect_ai: the rows, and a task that asks them turn by turn and has them judged by our own judge."""

from __future__ import annotations

from collections.abc import Sequence

from vcllm.charter import LoadedCharter
from vcllm.contracts.bench import Row
from vcllm.evaluation.exporting.parts import Part, Taken, program
from vcllm.evaluation.suites import Suite


def takes(row: Row) -> Taken:
    return None


def parts(suite: Suite, charter: LoadedCharter, rows: Sequence[Row]) -> list[Part]:
    lines = "".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)
    return [Part("rows.jsonl", lines), program("vc_inspect.py")]
