"""All figures of a bench report as CSV, one a line; the page shows no number that is not here or in the cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from vcllm.contracts.evaluation import Measure
from vcllm.contracts.figures import Agreement, BenchReport, JudgeReport, ModelComparison
from vcllm.evaluation.benchpage.figures import BOTH, every_figure

COLUMNS = (
    *("model", "minus", "judge", "measure", "group", "language"),
    *("value", "low", "high", "n", "p", "p_adjusted", "mde"),
)
"""`minus`: the model subtracted, for differences; `judge`: whom a figure is about, for those about judges."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would calculate."""
Line = list[str | float | None]


def render_bench_table(report: BenchReport) -> str:
    """Every figure, every difference, and what is known of the judges."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([_safe(cell) for cell in line] for line in _lines(report))
    return text.getvalue()


def _safe(cell: str | float | None) -> str | float | None:
    """Names come from elsewhere and are opened in spreadsheets: they stay text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _lines(report: BenchReport) -> Iterator[Line]:
    for model in report.models:
        for one in every_figure(model):
            yield _line(one.measure, one.value, model=model.model, group=one.group, language=one.language)
        for language, corrected in model.attack_success_corrected.items():
            yield _line("attack_success_corrected", corrected, model=model.model, language=language)
    yield from map(_difference, report.comparisons)
    for number, figures in report.attacker.items():
        count = int(figures.get("num", 0))
        for name, value in figures.items():
            yield _line(f"attacker_{name}", _bare(value, count), group=number)
    for judge in report.judges:
        yield from _judge(judge)
    for pair in report.agreements:
        for agreement in pair.languages:
            yield from _agreement("judges", f"{pair.first} and {pair.second}", agreement)


def _line(
    measure: str, figure: Measure, *, model: str = "", judge: str = "", group: str = "", language: str = BOTH
) -> Line:
    numbers = [figure.value, figure.low, figure.high, figure.n]
    return [model, "", judge, measure, group, language, *numbers, None, None, None]


def _bare(value: float, n: int) -> Measure:
    return Measure(value=value, low=None, high=None, n=n)


def _difference(c: ModelComparison) -> Line:
    measure, group = {
        "primary": (c.measure, ""),
        "value_cells": ("value_consistency", c.measure),
        "attack_cells": ("attack_success", c.measure),
    }[c.family]
    d = c.difference
    names = [c.after, c.before, "", measure, group, c.language.value if c.language else BOTH]
    return [*names, d.value, d.low, d.high, d.n, c.p, c.p_adjusted, c.mde]


def _judge(judge: JudgeReport) -> Iterator[Line]:
    def line(measure: str, figure: Measure, group: str = "", language: str = BOTH) -> Line:
        return _line(measure, figure, judge=judge.name, group=group, language=language)

    yield line("judge_unscored", _bare(judge.num_unscored, judge.num_verdicts))
    yield from (line("judge_length_correlation", m, language=lang) for lang, m in judge.length_correlation.items())
    if test := judge.self_test:
        yield line("selftest_ordered", test.zh, language="zh")
        yield line("selftest_ordered", test.en, language="en")
        yield from (line("selftest_ordered", m, fault) for fault, m in test.by_fault.items())
    if found := judge.calibration:
        for agreement in found.languages:
            yield from _agreement("people", judge.name, agreement)
        if found.people:
            yield from _agreement("labellers", judge.name, found.people)
        if found.alpha is not None:
            yield line("labellers_alpha", _bare(found.alpha, found.num_labels))
        for name in ("position_consistency", "length_correlation", "sensitivity", "specificity"):
            figures: dict[str, Measure] = getattr(found, name)
            yield from (line(f"calibration_{name}", m, language=lang) for lang, m in figures.items())
        for lang, rows in found.confusion.items():
            for people, counts in enumerate(rows, start=1):
                for own, count in enumerate(counts, start=1):
                    yield line("confusion", _bare(count, sum(map(sum, rows))), f"people {people}, judge {own}", lang)


def _agreement(who: str, judge: str, one: Agreement) -> Iterator[Line]:
    for name in ("agreement", "kappa", "weighted_kappa"):
        figure: Measure = getattr(one, name)
        yield _line(f"{who}_{name}", figure, judge=judge, language=one.lang.value if one.lang else BOTH)
