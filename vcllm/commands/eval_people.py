"""What people do for an evaluation: label answers on a sheet, and hold the judges against their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from vcllm.commands.errors import CommandError
from vcllm.commands.eval_stages import Surroundings, say, self_test_pairs
from vcllm.contracts.answers import Answer, Label, Verdict
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.figures import BenchReport, Calibration
from vcllm.evaluation.assemble import assemble
from vcllm.evaluation.bench.load import load_bench
from vcllm.evaluation.files import replace_text, write_lines
from vcllm.evaluation.labelling import draw_sample, read_labels, render_sheet, render_table
from vcllm.evaluation.selftest import MIN_ORDERED, selftest_result

PAGE, TABLE = "labelling.html", "labelling.csv"


def write_sheet(around: Surroundings, judge: str | None, per_language: int, seed: int) -> None:
    """A page and a table of the same answers, drawn by the judge's verdicts so that about half of them are bad."""
    answers, verdicts = around.folder.answers(), around.folder.verdicts()
    name = judge or _first_judge(around, verdicts)
    own = [verdict for verdict in verdicts if verdict.judge == name]
    items = draw_sample(around.folder.rows(), answers, own, per_language, seed)
    if not items:
        raise CommandError(f"There is nothing to label: '{name}' has scored no answer in {around.folder.folder}.")
    page, table = around.folder.folder / PAGE, around.folder.folder / TABLE
    # With a mark of the byte order, by which spreadsheets know the encoding.
    _write_new(table, f"\ufeff{render_table(items)}")
    replace_text(page, render_sheet(items))
    say(around.console, f"{len(items)} answers to label, by page: {page.resolve()}, or by table: {table.resolve()}")
    say(around.console, "Then: vcllm eval calibrate FILE")


def _first_judge(around: Surroundings, verdicts: Sequence[Verdict]) -> str:
    """The first that has scored something; multiple choice is not labelled."""
    scored = (one for one in verdicts if one.outcome is not Outcome.UNSCORED and one.score_mode != "choice")
    first = next(scored, None)
    if first is None:
        raise CommandError(f"Nobody has scored an answer in {around.folder.folder} yet. `vcllm eval judge` does.")
    return first.judge


def _write_new(table: Path, text: str) -> None:
    """People type their labels into this file: one that differs is not written over."""
    if table.exists() and table.read_bytes() != text.encode():
        raise CommandError(
            f"{table} is there already and may hold labels. Take them in with `vcllm eval calibrate`, then move it "
            "away."
        )
    replace_text(table, text)


def calibrate_run(around: Surroundings, files: Sequence[Path]) -> BenchReport:
    """Take labels in, beside those of earlier calls, and say how far each judge agrees with people."""
    answers, rows = around.folder.answers(), around.folder.rows()
    kept = {_place(label): label for label in around.folder.labels()}
    for file in files:
        kept |= {_place(label): label for label in read_labels(file, answers, rows)}
    if not kept:
        raise CommandError(
            "No answer is labelled in these files yet: say for each whether it is violating, and its score."
        )
    write_lines(around.folder.labels_file, kept.values())
    say(around.console, f"{len(kept)} labels are in {around.folder.labels_file}.")
    _tell_gone(around, kept.values(), answers)
    report = assemble(around.folder, around.charter, self_test_pairs(around))
    calibrated = [(judge.name, judge.calibration) for judge in report.judges if judge.calibration is not None]
    for name, calibration in calibrated:
        print_calibration(around.console, name, calibration)
    if not calibrated:
        raise CommandError(
            f"'{report.judges[0].name}' judges by rule, so that there is nothing to hold against labels. Have the run "
            "judged by a model, with `vcllm eval judge`."
        )
    return report


def _tell_gone(around: Surroundings, labels: Iterable[Label], answers: Iterable[Answer]) -> None:
    given = {(answer.item, answer.model) for answer in answers}
    if gone := [label for label in labels if (label.item, label.model) not in given]:
        say(
            around.console,
            f"{len(gone)} labels are of answers that this run does not have, and are compared with nothing. "
            f"The first: {gone[0].item} by {gone[0].model}.",
        )


def _place(label: Label) -> tuple[str, str, str]:
    return label.item, label.model, label.labeller


def print_calibration(console: Console, judge: str, found: Calibration) -> None:
    """Agreement by language, then what is missing for the judge to count as validated."""
    table = Table(title=f"{judge} against {found.num_labels} labels", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "n", "agreement", "kappa", "weighted kappa", "sensitivity", "specificity", "order", "length"):
        table.add_column(name, justify="right")
    for one in found.languages:
        lang = "both" if one.lang is None else one.lang.value
        extra = (found.sensitivity, found.specificity, found.position_consistency, found.length_correlation)
        measures = [measure.get(lang) for measure in extra]
        cells = [one.agreement, one.kappa, one.weighted_kappa, *measures]
        table.add_row(lang, str(one.n), *(_shown(cell) for cell in cells))
    console.print(table)
    for fault in found.faults:
        say(console, f"- {fault}")
    say(console, f"'{judge}' is {'not ' if found.faults else ''}validated by these labels.")


def print_self_tests(around: Surroundings, verdicts: Mapping[str, Sequence[Verdict]]) -> bool:
    """Whether every judge passed. verdicts: on the self-test's answers, by judge."""
    pairs = load_bench().selftest
    results = {judge: selftest_result(pairs, some) for judge, some in verdicts.items()}
    for judge, result in results.items():
        say(
            around.console,
            f"{judge} {'passed' if result.passed else 'failed'} the self-test: good answers above bad ones in "
            f"zh {_shown(result.zh)}, en {_shown(result.en)}; at least {MIN_ORDERED} is asked; "
            f"{result.num_unscored} unscored.",
        )
        for fault, measure in result.by_fault.items():
            say(around.console, f"  {fault.replace('_', ' ')}: {_shown(measure)}")
    return all(result.passed for result in results.values())


def _shown(measure: Measure | None) -> str:
    if measure is None or measure.value is None:
        return "-"
    if measure.low is None or measure.high is None:
        return f"{measure.value:.2f}"
    return f"{measure.value:.2f} ({measure.low:.2f} to {measure.high:.2f})"
