"""Writes a suite into a folder in the form of another tool, and says which rows that tool cannot be given.

Every folder holds `suite.json`, which says what set, version and canary it is, and a README with the two commands to
run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from vcllm.charter import LoadedCharter
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.exporting import harness, inspect, opencompass, promptfoo
from vcllm.evaluation.exporting.parts import TEMPLATES, Part, Taken, judged_by
from vcllm.evaluation.files import replace_text
from vcllm.evaluation.suites import Suite

STAMP = "suite.json"
README = "README.md"
SHOWN_IDS = 3


@dataclass(frozen=True)
class Format:
    """One tool."""

    title: str
    write: Callable[[Suite, LoadedCharter, Sequence[Row]], list[Part]]
    takes: Callable[[Row], Taken]
    """None for a row that is exported, else why it is not."""
    readme: str
    """A template's name."""


FORMATS: Mapping[str, Format] = {
    "inspect": Format("Inspect", inspect.parts, inspect.takes, "inspect.md"),
    "lm-eval": Format("lm-evaluation-harness", harness.parts, harness.takes, "lm_eval.md"),
    "promptfoo": Format("promptfoo", promptfoo.parts, promptfoo.takes, "promptfoo.md"),
    "opencompass": Format("OpenCompass", opencompass.parts, opencompass.takes, "opencompass.md"),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and what was not."""

    folder: Path
    files: tuple[Path, ...]
    num_rows: int
    left_out: Mapping[str, tuple[str, ...]]
    """Reason to the ids of rows."""

    def sentences(self) -> list[str]:
        """What was left out, one sentence for each reason."""
        return [_left_out(reason, ids) for reason, ids in self.left_out.items()]


def export_suite(format: str, suite: Suite, folder: Path, charter: LoadedCharter) -> Exported:
    """Write the folder; raises BadRequest for an unknown format, or when the tool can be given none of the rows."""
    chosen = FORMATS.get(format)
    if chosen is None:
        raise BadRequest(f"There is no export to '{format}'. Use one of {', '.join(FORMATS)}.")
    left_out: dict[str, list[str]] = {}
    rows = []
    for row in suite.rows:
        if reason := chosen.takes(row):
            left_out.setdefault(reason, []).append(row.id)
        else:
            rows.append(row)
    if not rows:
        raise BadRequest(f"{chosen.title} can be given none of these rows: {', '.join(left_out)}.")
    told = [_left_out(reason, ids) for reason, ids in left_out.items()]
    written = [
        *chosen.write(suite, charter, rows),
        _stamp(format, suite, charter, rows),
        _readme(chosen, suite, rows, told),
    ]
    for part in written:
        replace_text(folder / part.name, part.text)
    files = tuple(folder / part.name for part in written)
    return Exported(folder, files, len(rows), {reason: tuple(ids) for reason, ids in left_out.items()})


def _stamp(format: str, suite: Suite, charter: LoadedCharter, rows: Sequence[Row]) -> Part:
    stamp = {
        "format": format,
        "suite": suite.name,
        "version": suite.version,
        "hash": suite.hash,
        "num_rows": len(rows),
        "charter": charter.charter.id,
        "charter_hash": charter.hash,
        "judged_by": judged_by(charter),
        "canary": _canary(rows),
    }
    return Part(STAMP, json.dumps(stamp, ensure_ascii=False, indent=1) + "\n")


def _readme(chosen: Format, suite: Suite, rows: Sequence[Row], told: Sequence[str]) -> Part:
    kinds = Counter(row.kind for row in rows)
    values = {
        "suite": f"{suite.name} {suite.version}".strip(),
        "suite_name": suite.name,
        "hash": suite.hash,
        "num_rows": str(len(rows)),
        "kinds": ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items())),
        "left_out": "\n".join(f"- {sentence}" for sentence in told) or "- Nothing.",
        "canary": _canary(rows) or "(none: these rows are no test set of ours)",
    }
    text = Template((TEMPLATES / chosen.readme).read_text(encoding="utf-8")).substitute(values)
    return Part(README, text)


def _left_out(reason: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f"{len(ids)} left out, {reason}: {', '.join(ids[:SHOWN_IDS])}{more}."


def _canary(rows: Sequence[Row]) -> str:
    return next((row.canary for row in rows if row.canary), "")
