"""`vcllm eval`: results, read from the report's data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vcllm.commands.board import Figures, read_figures
from vcllm.commands.display import figures_table, open_console
from vcllm.commands.errors import CommandError
from vcllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Results of evaluations.")


@app.command()
def report(
    path: Annotated[Path | None, typer.Argument(help="A report.json; default: that of the last run here.")] = None,
) -> None:
    """The table of the last run: every stage and round on the held-out questions."""
    file = path or report_file(Settings().home)
    console = open_console()
    console.print(figures_table(report_rows(read_report(file)), console.width))
    console.print(f"With intervals, heat map and examples: {file.with_name('index.html').resolve()}", highlight=False)


def report_file(home: Path) -> Path:
    return home / "report" / "report.json"


def read_report(file: Path) -> dict[str, Any]:
    """The report's data; CommandError when there is none, or only half of one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {**found, "stages": list(found["stages"])}
    except FileNotFoundError:
        raise CommandError(f"There is no report at {file}. `vcllm demo` makes one.") from None
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{file} is not a whole report. Run the job again: it makes a new one.") from None


def report_rows(found: Mapping[str, Any]) -> list[Figures]:
    rows = []
    for stage in found["stages"]:
        row = Figures(str(stage.get("name", "?")))
        read_figures(row, stage)
        rows.append(row)
    return rows
