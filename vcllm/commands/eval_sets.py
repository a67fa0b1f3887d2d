"""`vcllm eval import`, `import-lm-eval` and `export`: public sets in, other tools' runs in, our suites out."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from vcllm.charter import load_charter
from vcllm.commands.display import open_console
from vcllm.contracts.answers import Answer, AskedModel
from vcllm.contracts.base import Contract
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.exporting import FORMATS, export_suite
from vcllm.evaluation.files import Appender, write_lines
from vcllm.evaluation.importing import SETS, Imported, import_set, set_named, training_prompts
from vcllm.evaluation.importing.hub import fetch
from vcllm.evaluation.importing.lm_eval import decoding_of
from vcllm.evaluation.importing.lm_eval import import_lm_eval as read_lm_eval
from vcllm.evaluation.runs import RunFolder
from vcllm.evaluation.suites import join_suites, load_suite
from vcllm.settings import Settings


class Purpose(StrEnum):
    """What imported questions are for."""

    EVALUATION = "evaluation"
    TRAINING = "training"


def import_(
    name: Annotated[
        str | None, typer.Argument(help="The set; without it, all sets are listed with their terms.")
    ] = None,
    files: Annotated[list[Path] | None, typer.Argument(help="Its data files, or folders that hold them.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file; default: NAME.jsonl, to train NAME-prompts.jsonl.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of the set, such as a commit; default: the hash of the files.")
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Fetch the data files from the Hugging Face hub.")] = False,
    purpose: Annotated[
        Purpose, typer.Option("--for", help="`training` writes prompts alone, where the set's terms allow it.")
    ] = Purpose.EVALUATION,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Train on a set although its terms speak against it.")
    ] = False,
) -> None:
    """Turn a public set that you have into rows for `vcllm eval run --suite FILE`."""
    console = open_console()
    if name is None:
        console.print(_sets())
        return
    say(console, f"{set_named(name).title}: {set_named(name).terms}. {set_named(name).url}")
    imported = _from_hub(name, files or [], revision) if hub else import_set(name, files or [], revision)
    lines: list[Contract] = list(imported.rows)
    what, file = "rows", out or Path(f"{name}.jsonl")
    if purpose is Purpose.TRAINING:
        lines = list(training_prompts(imported, accept_licence))
        what, file = "prompts for training", out or Path(f"{name}-prompts.jsonl")
    write_lines(file, lines)
    for note in imported.notes:
        say(console, note)
    say(console, f"{file}: {len(lines):,} {what}, revision {imported.revision}.")


def _from_hub(name: str, files: list[Path], revision: str | None) -> Imported:
    """What the hub has, and files that it has not, such as answers that are published elsewhere."""
    with tempfile.TemporaryDirectory(prefix="vcllm-") as folder:
        fetched = fetch(set_named(name), Path(folder), revision)
        return import_set(name, [fetched.folder, *files], fetched.revision)


def _sets() -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "set", "terms", "home"):
        table.add_column(column, overflow="fold")
    for info in SETS:
        table.add_row(info.name, info.title, info.terms, info.url)
    return table


def import_lm_eval(
    samples: Annotated[list[Path], typer.Argument(help="samples_*.jsonl of a run with --log_samples.")],
    suite: Annotated[list[str], typer.Option(help="The suite that was exported, by name or file; may be repeated.")],
    model: Annotated[str, typer.Option(help="The name under which the report shows the model.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the evaluation; default: eval/ in the home.")] = None,
    charter: Annotated[Path | None, typer.Option(help="A charter's folder; default: the one that is shipped.")] = None,
) -> None:
    """Take over the answers of a run of lm-evaluation-harness, to be judged by `vcllm eval judge`."""
    suites = [load_suite(name) for name in suite]
    decoding = decoding_of(samples)
    answers = [answer for file in samples for answer in read_lm_eval(file, join_suites(suites).rows, model, decoding)]
    if len({answer.key for answer in answers}) < len(answers):
        raise BadRequest("A row was answered twice. Name the samples of one run only, each file once.")
    folder, loaded = RunFolder(out or Settings().home / "eval"), load_charter(charter)
    for one in suites:
        folder.begin(one, loaded)
    folder.note(AskedModel(name=model, served="lm-evaluation-harness", decoding=decoding))
    with Appender(folder.answers_file, Answer) as kept:
        for answer in answers:
            kept.append(answer)
    say(
        open_console(), f"{len(answers):,} answers of {model} are in {folder.folder}. `vcllm eval judge` goes on there."
    )


def export(
    format: Annotated[str, typer.Argument(help=f"One of {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    suite: Annotated[list[str], typer.Option(help="By name or file of rows; may be repeated.")] = ["smoke"],  # noqa: B006
    charter: Annotated[Path | None, typer.Option(help="A charter's folder; default: the one that is shipped.")] = None,
) -> None:
    """Write suites in the form of another tool, with all it takes to ask them and judge the answers there."""
    console, loaded = open_console(), load_charter(charter)
    exported = export_suite(format, join_suites([load_suite(name) for name in suite]), out, loaded)
    for sentence in exported.sentences():
        say(console, sentence)
    say(console, f"{out}: {exported.num_rows:,} rows. How to run them stands in {out / 'README.md'}.")


def say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
