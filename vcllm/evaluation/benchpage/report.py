"""The report of a bench run as files; knows their names, and that they belong together."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vcllm.contracts.figures import BenchReport
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.benchpage.page import render_bench_page
from vcllm.evaluation.benchpage.table import render_bench_table
from vcllm.evaluation.files import replace_text

PAGE, TABLE, DATA = "index.html", "figures.csv", "report.json"


def write_bench_report(report: BenchReport, folder: Path) -> None:
    """Write three files, each whole or not at all; `report.json` last, so that it vouches for the others."""
    page, table = render_bench_page(report), render_bench_table(report)
    replace_text(folder / PAGE, page)
    replace_text(folder / TABLE, table)
    replace_text(folder / DATA, report.model_dump_json(indent=1) + "\n")


def read_bench_report(folder: Path) -> BenchReport:
    """What `write_bench_report` wrote; raises BadRequest where there is none, or one of another version."""
    try:
        return BenchReport.model_validate_json((folder / DATA).read_bytes())
    except FileNotFoundError:
        raise BadRequest(f"There is no report in {folder}. `vcllm eval report` makes one.") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"]
        raise BadRequest(f"{folder / DATA} cannot be read ({fault}). Make the report again.") from None
