"""One set on its way into training: every row read, normalised, and checked, and what happened to it counted.

Rows stream through: memory holds one of them, 16 bytes' hash for each row kept, and the faults that are shown.
Faulty rows are told all together at the end, so that a file is corrected once and not once per fault.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Contamination as Policy
from vcllm.data.contamination import Contamination
from vcllm.data.faults import MAX_SHOWN, Fault, Faults
from vcllm.data.jsonl import Found
from vcllm.data.lengths import IsLong
from vcllm.data.shapes import Row, is_missing, normalise, texts_of

MAX_IGNORED = 12
"""Names of unused keys that are kept; a file with random keys must not fill the memory."""


@dataclass(frozen=True)
class Checks:
    """What rows are held to."""

    stage: str | None = None
    """None: any shape will do."""
    charter: str | None = None
    """Hash that approved pairs must have been made under; None: any."""
    is_long: IsLong | None = None
    """None: nothing counts as too long."""
    contamination: Contamination | None = None
    """The evaluation; None: rows are not held against it."""
    policy: Policy = "refuse"
    max_shown: int = MAX_SHOWN


@dataclass
class Counts:
    """What became of the rows of one set."""

    rows: int = 0
    usable: int = 0
    faulty: int = 0
    empty: int = 0
    """A text or turn of nothing but blanks; left out."""
    duplicates: int = 0
    """Same content as an earlier row of the set; left out."""
    too_long: int = 0
    """Kept; the training cuts them."""
    contaminated: int = 0
    """Left out, or kept under the policy `allow`."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Intake:
    """Iterate over it once for the usable rows, then read what it has found."""

    name: str
    source: Iterable[Found]
    checks: Checks = Checks()
    counts: Counts = field(default_factory=Counts)
    faults: Faults = field(init=False)
    leaks: Faults = field(init=False)
    """Rows that quote the evaluation; the reason holds the item's id."""
    ignored: set[str] = field(default_factory=set)
    """Keys that were not used."""

    def __post_init__(self) -> None:
        self.faults = Faults(self.checks.max_shown)
        self.leaks = Faults(self.checks.max_shown)
        self._seen: set[bytes] = set()

    def __iter__(self) -> Iterator[Row]:
        for found in self.source:
            self.counts.rows += 1
            row = self._sound(found)
            if row is not None and self._wanted(row, found.where):
                self.counts.usable += 1
                yield row

    def _sound(self, found: Found) -> Row | None:
        """The canonical row; None, and the faults noted, where there is none."""
        if found.fault is not None:
            self.counts.faulty += 1
            self.faults.add(Fault(found.where, "", found.fault, "invalid_json"))
            return None
        normal = normalise(found.value, self.checks.stage, self.checks.charter)
        for pointer, reason in normal.faults:
            code = "missing_field" if is_missing(reason) else "invalid_value"
            self.faults.add(Fault(found.where, pointer, reason, code))
        self.counts.faulty += bool(normal.faults)
        if len(self.ignored) < MAX_IGNORED:
            self.ignored |= normal.ignored
        return normal.row

    def _wanted(self, row: Row, where: str) -> bool:
        texts, counts = texts_of(row), self.counts
        if not all(map(str.strip, texts)):
            counts.empty += 1
            return False
        if self._is_repeated(row):
            counts.duplicates += 1
            return False
        if self.checks.is_long is not None and self.checks.is_long("\n".join(texts)):
            counts.too_long += 1
        quoted = self.checks.contamination.find(texts) if self.checks.contamination is not None else None
        if quoted is not None:
            counts.contaminated += 1
            self.leaks.add(Fault(where, "", f"quotes evaluation item {quoted}", "contaminated"))
        return quoted is None or self.checks.policy == "allow"

    def _is_repeated(self, row: Row) -> bool:
        content = {key: value for key, value in row.items() if key != "id"}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        mark = hashlib.blake2b(text.encode(), digest_size=16).digest()
        known = mark in self._seen
        self._seen.add(mark)
        return known


def refuse_unusable(intakes: Iterable[Intake]) -> None:
    """BadRequest with everything that keeps these sets from training; nothing when they can be used."""
    reasons = [reason for intake in intakes for reason in refusals(intake)]
    if reasons:
        raise BadRequest(" ".join(reasons), param="data", code="data_invalid")


def refusals(intake: Intake) -> list[str]:
    """A sentence for each thing that keeps one set, read to its end, from training."""
    counts, reasons = intake.counts, []
    if intake.faults.total:
        reasons.append(f"{intake.name} has {_number(intake.faults.total, 'fault')}: {intake.faults}.")
    if intake.leaks.total and intake.checks.policy == "refuse":
        reasons.append(
            f"{intake.name} quotes the evaluation in {_number(intake.leaks.total, 'row')}: {intake.leaks}. Take them "
            'out, or let the recipe do it with contamination = "drop"; "allow" trains on them and spoils the figures.'
        )
    if not reasons and not counts.usable:
        left_out = ((getattr(counts, name), word) for name, word in _LEFT_OUT.items())
        told = ", ".join(f"{count:,} {word}" for count, word in left_out if count)
        reasons.append(f"{intake.name} has no row to train on ({told or 'it is empty'}). Bring a set that has.")
    return reasons


_LEFT_OUT = {"empty": "empty", "duplicates": "repeated", "contaminated": "quoting the evaluation"}


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def summary(intakes: Iterable[Intake]) -> list[dict[str, Any]]:
    """Counts by set, as they go into an event or a file."""
    return [{"set": intake.name, **intake.counts.as_dict(), "ignored": sorted(intake.ignored)} for intake in intakes]
