"""Which rows are asked: a suite by its name, or a file of rows such as an importer writes.

`smoke` is 52 prompts that touch every kind and, twice, every sub-domain; `core` is the whole test split; `dev` is for
choosing thresholds and decoding, never for reporting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcllm.contracts.base import digest
from vcllm.contracts.bench import Row, Unit
from vcllm.contracts.charter import Split
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.bench.load import SMOKE_KINDS, Bench, load_bench, rows_of
from vcllm.evaluation.files import read_lines
from vcllm.evaluation.generate import LETTERS

NAMES = ("smoke", "core", "dev")


@dataclass(frozen=True)
class Suite:
    """Rows and what they are called."""

    name: str
    version: str
    rows: tuple[Row, ...]

    @property
    def hash(self) -> str:
        """Of every row."""
        return digest([row.model_dump(mode="json") for row in self.rows])


def load_suite(name: str, bench_folder: Path | None = None) -> Suite:
    """A suite by name, or the rows of a JSONL file; raises BadRequest or BenchError."""
    if name in NAMES:
        bench = load_bench(bench_folder)
        return Suite(name, bench.release.version, tuple(_rows(name, bench)))
    file = Path(name)
    if not file.is_file():
        raise BadRequest(f"There is no suite '{name}'. Use {', '.join(NAMES)}, or a file of rows.")
    rows = tuple(read_lines(file, Row, by_hand=True))
    _check(file, rows)
    return Suite(file.stem, "", rows)


def join_suites(suites: Sequence[Suite]) -> Suite:
    """All rows, as one suite; raises BadRequest when two rows have one id."""
    rows = [row for suite in suites for row in suite.rows]
    if len({row.id for row in rows}) < len(rows):
        raise BadRequest("Two rows have the same id. Give each suite once, and not together with a part of it.")
    versions = [suite.version for suite in suites if suite.version]
    return Suite("+".join(suite.name for suite in suites), "+".join(dict.fromkeys(versions)), tuple(rows))


def smoke_units(units: Sequence[Unit]) -> list[Unit]:
    """26 units: of each kind as many as SMOKE_KINDS says, sets whole, every sub-domain twice.

    Chosen by the hash of ids, so that adding units elsewhere does not change the choice.
    """
    left = dict.fromkeys(sorted({unit.subdomain for unit in units}), 2)
    chosen: list[Unit] = []
    for kind, wanted in sorted(SMOKE_KINDS.items(), key=lambda pair: -_set_size(units, pair[0])):
        clusters: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.kind is kind:
                clusters.setdefault(unit.cluster, []).append(unit)
        ranked = sorted(clusters, key=_rank)
        taken = 0
        while taken < wanted:
            fitting = [c for c in ranked if left[clusters[c][0].subdomain] >= len(clusters[c])]
            if not fitting:
                break
            # The emptiest sub-domain first: so each ends up with its two.
            best = max(fitting, key=lambda c: (left[clusters[c][0].subdomain], -ranked.index(c)))
            chosen += clusters[best]
            taken += len(clusters[best])
            left[clusters[best][0].subdomain] -= len(clusters[best])
            ranked.remove(best)
    return sorted(chosen, key=lambda unit: unit.id)


def _set_size(units: Sequence[Unit], kind: str) -> int:
    return 2 if any(unit.kind == kind and unit.set for unit in units) else 1


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(name: str, bench: Bench) -> list[Row]:
    if name == "dev":
        return bench.rows(Split.DEV)
    units = bench.units[Split.TEST]
    chosen = smoke_units(units) if name == "smoke" else units
    return [row for unit in chosen for row in rows_of(unit, Split.TEST, bench.release)]


def _check(file: Path, rows: Sequence[Row]) -> None:
    if not rows:
        raise BadRequest(f"{file} holds no rows.")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise BadRequest(f"{file}: the id '{row.id}' is there twice. Every row needs its own.")
        if len(row.choices) > len(LETTERS):
            raise BadRequest(
                f"{file}: '{row.id}' has {len(row.choices)} choices; there are letters for {len(LETTERS)}."
            )
        seen.add(row.id)
