"""The report of a run as files: one page, one table, and the JSON from which both can be made again.

Knows file names and columns; what the page shows is the business of `page`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from vcllm.charter import LoadedCharter
from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import ATTACK_SUITES, Measure, Report, StageResult
from vcllm.contracts.matrix import Matrix
from vcllm.evaluation.files import replace_text
from vcllm.evaluation.page import render_page
from vcllm.evaluation.verdict import final_stage, verdict_lines

__all__ = ["final_stage", "labels_of", "read_report", "verdict_lines", "write_report"]

BOTH = "both"
PAGE, TABLE, DATA = "index.html", "report.csv", "report.json"
COLUMNS = ("stage", "minus", "measure", "group", "language", "value", "low", "high", "n", "p", "p_adjusted")
"""`minus`: the stage subtracted, for differences; `group`: a suite or a sub-domain. Of the matrix, `group` is the
version of the Attacker and `stage` that of the Actor."""


def write_report(report: Report, folder: Path) -> None:
    """Write three files, each whole or not at all; `report.json` last, so that it vouches for the others."""
    replace_text(folder / PAGE, render_page(report))
    replace_text(folder / TABLE, render_table(report))
    replace_text(folder / DATA, report.model_dump_json(indent=1) + "\n")


def read_report(folder: Path) -> Report:
    """What `write_report` wrote; raises FileNotFoundError where there is none."""
    return Report.model_validate_json((folder / DATA).read_bytes())


def labels_of(charter: LoadedCharter) -> dict[str, Bilingual]:
    """Names of the sub-domains and tactics, for `Report.labels`."""
    subdomains = {subdomain.id: subdomain.name for subdomain in charter.taxonomy.subdomains}
    return subdomains | {tactic.id: tactic.name for tactic in charter.tactics}


def render_table(report: Report) -> str:
    """Every figure and every difference as CSV, one a line."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for stage in report.stages:
        table.writerows([stage.name, "", *names, *_numbers(m), "", ""] for *names, m in _figures(stage))
    if report.matrix is not None:
        table.writerows([*names, *_numbers(m), "", ""] for *names, m in _cells(report.matrix))
    for c in report.comparisons:
        measure, _, group = c.measure.partition(".")
        if c.family == "subdomain":
            measure, group = "attack_success", c.measure
        names = [c.after, c.before, measure, group, c.language or BOTH]
        table.writerow([*names, *_numbers(c.difference), c.p, c.p_adjusted])
    return text.getvalue()


def _numbers(measure: Measure) -> list[float | None]:
    return [measure.value, measure.low, measure.high, measure.n]


def _cells(matrix: Matrix) -> Iterator[tuple[str, str, str, str, str, Measure]]:
    """Version of the Actor, nothing, measure, version of the Attacker, both languages, figure."""
    for attacker, row in zip(matrix.attackers, matrix.cells, strict=True):
        for actor, figure in zip(matrix.actors, row, strict=True):
            if figure is not None:
                yield actor, "", "attack_success", attacker, BOTH, figure


def _figures(stage: StageResult) -> Iterator[tuple[str, str, str, Measure]]:
    """Measure, group, language, figure."""
    for measure in ("attack_success", "consistent"):
        for suite in ATTACK_SUITES:
            figure = getattr(stage, measure)[suite]
            yield measure, suite, "zh", figure.zh
            yield measure, suite, "en", figure.en
            yield measure, suite, BOTH, figure.mean
    for measure in ("over_refusal", "benign_helpful", "broken", "refusal"):
        figure = getattr(stage, measure)
        yield measure, "", "zh", figure.zh
        yield measure, "", "en", figure.en
        yield measure, "", BOTH, figure
    for measure in ("agreement", "both_consistent", "retention"):
        if (pairs := getattr(stage, measure)) is not None:
            yield measure, "", BOTH, pairs
    for subdomain, cell in stage.by_subdomain.items():
        yield "attack_success", subdomain, "zh", cell.zh
        yield "attack_success", subdomain, "en", cell.en
