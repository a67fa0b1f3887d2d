"""`vcllm data`: check your own training data before a run depends on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vcllm.charter import LoadedCharter, load_charter
from vcllm.commands.charter import named_charter
from vcllm.commands.data_qc import qc
from vcllm.commands.display import open_console
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import EvaluationParams
from vcllm.data.contamination import Contamination
from vcllm.data.faults import MAX_SHOWN
from vcllm.data.intake import Checks, Counts, Intake, refusals, summary
from vcllm.data.jsonl import Found
from vcllm.data.lengths import IsLong, characters
from vcllm.data.reading import read_set
from vcllm.data.tokenizing import tokens
from vcllm.evaluation.bench.load import held_out_questions
from vcllm.recipes import load_recipe, used_part
from vcllm.settings import Settings
from vcllm.starter.suite import items_of_run

app = typer.Typer(no_args_is_help=True, help="Your own training data, and the evaluation set.")

MAX_CHARS = 8000
COLUMNS: dict[str, Callable[[Counts], int]] = {
    "rows": lambda counts: counts.rows,
    "usable": lambda counts: counts.usable,
    "faulty": lambda counts: counts.faulty,
    "empty": lambda counts: counts.empty,
    "repeated": lambda counts: counts.duplicates,
    "too long": lambda counts: counts.too_long,
    "quoting the\nevaluation": lambda counts: counts.contaminated,
}


class Stage(StrEnum):
    """What a file is meant for."""

    PRETRAIN = "pretrain"
    CPT = "cpt"
    SFT = "sft"
    CRITIC = "critic"
    ATTACKER = "attacker"
    PREFERENCE = "preference"


@app.callback()
def data() -> None:
    """Your own training data, and the evaluation set."""


app.command()(qc)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="JSONL or Parquet files, or folders of saved data sets.")],
    stage: Annotated[Stage | None, typer.Option(help="What the rows are for; default: any shape will do.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Check against this recipe's charter, evaluation and rule on contamination.")
    ] = None,
    charter: Annotated[
        Path | None, typer.Option(help="A charter's folder; default: the recipe's, or the one that is shipped.")
    ] = None,
    max_chars: Annotated[int, typer.Option(min=1, help="A row of more characters counts as too long.")] = MAX_CHARS,
    tokenizer: Annotated[Path | None, typer.Option(help="A model's folder: count tokens, not characters.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="With --tokenizer: more of them is too long.")] = 512,
    max_faults: Annotated[int, typer.Option(min=0, help="Faults shown of each set; all are counted.")] = MAX_SHOWN,
    no_contamination: Annotated[
        bool, typer.Option("--no-contamination", help="Do not look for questions of the evaluation.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Print this many rows of each set as the training sees them.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read data as a run would; exit status 1 when a run would refuse it."""
    settings = Settings()
    plan = None if recipe is None else load_recipe(settings.recipes, recipe)
    loaded = load_charter(charter) if charter or plan is None else named_charter(settings, plan.charter)
    params, used = (EvaluationParams(), loaded) if plan is None else (plan.evaluation, used_part(plan, loaded))
    checks = Checks(
        stage=stage,
        charter=loaded.hash,
        is_long=_length(tokenizer, max_tokens, max_chars),
        contamination=None if no_contamination else _questions(used, params),
        policy="refuse" if plan is None else plan.contamination,
        max_shown=max_faults,
    )
    read = [_read(file, checks, show) for file in files]
    reasons = [reason for intake, _ in read for reason in refusals(intake)]
    limit = f"{max_chars:,} characters" if tokenizer is None else f"{max_tokens:,} tokens"
    if as_json:
        typer.echo(json.dumps(_told(read, reasons, limit), ensure_ascii=False, indent=1))
    else:
        _print(open_console(), read, reasons, limit)
    raise typer.Exit(1 if reasons else 0)


Read = tuple[Intake, list[dict[str, Any]]]
"""A set that was read to its end, and its first rows."""


def _read(file: Path, checks: Checks, show: int) -> Read:
    intake = Intake(str(file), _source(file), checks)
    rows: Iterator[dict[str, Any]] = iter(intake)
    shown = list(islice(rows, show))
    for _ in rows:
        pass
    return intake, shown


def _source(file: Path) -> Iterator[Found]:
    """The set's rows; one that cannot be read at all must not keep the others from being checked."""
    try:
        yield from read_set(file)
    except BadRequest as error:
        yield Found(file.name, fault=error.message.rstrip("."))


def _length(tokenizer: Path | None, max_tokens: int, max_chars: int) -> IsLong:
    return characters(max_chars) if tokenizer is None else tokens(tokenizer, max_tokens)


def _questions(charter: LoadedCharter, params: EvaluationParams) -> Contamination:
    report, gate = items_of_run(charter, params)
    asked = [(item.id, item.query) for item in (*report, *gate)]
    return Contamination([*asked, *held_out_questions()])


def _told(read: list[Read], reasons: list[str], limit: str) -> dict[str, Any]:
    return {
        "ok": not reasons,
        "too_long": f"more than {limit}",
        "sets": [
            {
                **counts,
                "num_faults": intake.faults.total,
                "faults": [vars(fault) for fault in intake.faults.shown],
                "quotes": [vars(leak) for leak in intake.leaks.shown],
                "first_rows": rows,
            }
            for (intake, rows), counts in zip(read, summary(intake for intake, _ in read), strict=True)
        ],
    }


def _print(console: Console, read: list[Read], reasons: list[str], limit: str) -> None:
    table = Table(title=f"Too long: more than {limit}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("set", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for intake, _ in read:
        table.add_row(Text(intake.name), *(f"{count(intake.counts):,}" for count in COLUMNS.values()))
    console.print(table)
    for intake, rows in read:
        _print_findings(console, intake)
        for row in rows:
            _line(console, json.dumps(row, ensure_ascii=False))
    if reasons:
        _line(console, "A run would refuse this data.", style="red")
    else:
        _line(console, "A run would take this data.", style="green")


def _print_findings(console: Console, intake: Intake) -> None:
    for what, found in (("fault", intake.faults), ("quote", intake.leaks)):
        if found.total:
            _line(console, f"{intake.name}: {found.total:,} {what}{'' if found.total == 1 else 's'}")
        for fault in found.shown:
            _line(console, f"  {fault}")
        if found.total > len(found.shown):
            _line(console, f"  and {found.total - len(found.shown):,} more")
    if intake.ignored:
        _line(console, f"{intake.name}: not used: {', '.join(sorted(intake.ignored))}")
    if not intake.faults.total and not intake.counts.usable:
        _line(console, " ".join(refusals(intake)))


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
