"""`vcllm eval`: ask models, judge their answers, report; and what prepares or checks such a run.

Every stage goes on where it stopped. Statistics and pictures are loaded only by the commands that need them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vcllm.charter import LoadedCharter, load_charter
from vcllm.commands import eval_sets
from vcllm.commands.board import Figures, read_figures
from vcllm.commands.display import figures_table, open_console
from vcllm.commands.errors import CommandError
from vcllm.commands.options import Key, Url
from vcllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Evaluations: questions, answers, verdicts, reports.")

Out = Annotated[Path | None, typer.Option("--out", help="The run's folder; default: eval below VCLLM_HOME.")]
Charter = Annotated[
    Path | None, typer.Option("--charter", help="A charter's folder; default: the one that is shipped.")
]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="smoke, core, dev, starter, fresh or a file of rows; repeat for more. Default: those that the run has, or "
        "smoke, and on a starter its own.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="NAME=URL#MODEL, NAME=FOLDER or NAME=VERSION; repeat for more, the one to compare with first. "
        "Default: base, stages and current version behind the gateway.",
    ),
]
Prompted = Annotated[
    list[str] | None,
    typer.Option("--prompted", help="Ask this --model also with the charter as its system message."),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge", help="NAME=URL#MODEL, or gold for a starter; repeat for more, the one the figures come from first."
    ),
]
Guards = Annotated[
    list[str] | None, typer.Option("--guard", help="KIND:NAME=URL#MODEL: a guard model that may veto a judge's score.")
]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Questions under way at once.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, max=2, help="0: the likeliest words; default: 0, for a starter 0.7.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Of each answer; default: 512, for a starter 64.")]
Seed = Annotated[int, typer.Option(help="Each question's own seed is made of this and its id.")]
Retry = Annotated[bool, typer.Option("--retry", help="Ask again for verdicts that failed.")]
SelfTest = Annotated[bool, typer.Option(help="Also let each judge take the self-test.")]
Patience = Annotated[float, typer.Option(min=0, help="Seconds for which a server that does not answer is asked again.")]


@app.command()
def run(
    out: Out = None,
    suite: Suites = None,
    model: Models = None,
    prompted: Prompted = None,
    judge: Judges = None,
    guard: Guards = None,
    charter: Charter = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    concurrency: Concurrency = 16,
    patience: Patience = 120.0,
    self_test: SelfTest = True,
    url: Url = None,
    key: Key = None,
) -> None:
    """All three stages: ask, judge, report. Run it again after an interruption: it goes on where it stopped."""
    from vcllm.commands import eval_stages as stages

    around = _around(out, charter, concurrency, patience)
    judges = stages.check_judges(around, judge or [], guard or [])
    generate(out, suite, model, prompted, charter, temperature, max_tokens, seed, concurrency, patience, url, key)
    judge_(out, judge, guard, charter, concurrency, patience, False, self_test)
    stages.report_run(around, stages.leading(around, judges))


@app.command()
def generate(
    out: Out = None,
    suite: Suites = None,
    model: Models = None,
    prompted: Prompted = None,
    charter: Charter = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    concurrency: Concurrency = 16,
    patience: Patience = 120.0,
    url: Url = None,
    key: Key = None,
) -> None:
    """Ask models the questions of suites; each answer is kept the moment it is there."""
    from vcllm.commands import eval_models as models
    from vcllm.commands import eval_stages as stages

    around = _around(out, charter, concurrency, patience)
    specs, names = model or [], suite or []
    asks_gateway = models.needs_gateway(specs)
    with models.lent_key(url, key) as lent:
        gateway = models.look_at_gateway(url, lent) if asks_gateway or stages.FRESH in names else None
        sources = models.wanted_sources(specs, prompted or [], gateway)
        served = None if gateway is None else models.trained(around.home, gateway.current)
        suites = stages.chosen_suites(names, around, served)
        # Other models than the gateway's may be asked a starter's questions; they take more words to answer.
        decoding = stages.decoding_for(served if asks_gateway else None, temperature, max_tokens, seed)
        stages.ask(around, suites, sources, decoding)


@app.command("judge")
def judge_(
    out: Out = None,
    judge: Judges = None,
    guard: Guards = None,
    charter: Charter = None,
    concurrency: Concurrency = 16,
    patience: Patience = 120.0,
    retry: Retry = False,
    self_test: SelfTest = True,
) -> None:
    """Have every answer of a run judged; later by other judges too, each verdict once."""
    from vcllm.commands import eval_stages as stages

    around = _around(out, charter, concurrency, patience)
    stages.judge_run(around, judge or stages.default_judges(around), guard or [], retry, self_test)


@app.command()
def report(
    out: Out = None,
    judge: Annotated[
        str | None, typer.Option(help="The judge the figures come from; default: who scored most answers.")
    ] = None,
    charter: Charter = None,
) -> None:
    """Make the report of a run: one page, a table of every figure, and the data of both."""
    from vcllm.commands import eval_stages as stages

    stages.report_run(_around(out, charter), judge)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="A model of the run.")],
    after: Annotated[str, typer.Argument(help="Another one.")],
    judge: Judges = None,
    out: Out = None,
    charter: Charter = None,
    concurrency: Concurrency = 16,
    patience: Patience = 120.0,
) -> None:
    """Have a judge say which of two models answers better, question by question, asked in both orders."""
    from vcllm.commands import eval_stages

    if not judge:
        raise CommandError("Say who compares: --judge NAME=URL#MODEL.")
    eval_stages.compare_run(_around(out, charter, concurrency, patience), judge, before, after)


@app.command("self-test")
def self_test_(
    judge: Judges = None,
    out: Out = None,
    charter: Charter = None,
    concurrency: Concurrency = 16,
    patience: Patience = 120,
) -> None:
    """Can these judges tell good answers from bad ones? Exit status 1 when one cannot."""
    from vcllm.commands import eval_people, eval_stages

    if not judge:
        raise CommandError("Say which judges take the test: --judge NAME=URL#MODEL.")
    around = _around(out, charter, concurrency, patience)
    passed = eval_people.print_self_tests(around, eval_stages.self_test_run(around, judge))
    raise typer.Exit(0 if passed else 1)


@app.command()
def sheet(
    out: Out = None,
    judge: Annotated[
        str | None, typer.Option(help="Whose verdicts decide what is drawn; default: who judged first.")
    ] = None,
    per_language: Annotated[int, typer.Option(min=1, help="Answers to label in each language.")] = 100,
    seed: Annotated[int, typer.Option(help="Decides which answers are drawn, and their order.")] = 0,
    charter: Charter = None,
) -> None:
    """Write a page and a table on which people label a run's answers, without seeing who gave them."""
    from vcllm.commands import eval_people

    eval_people.write_sheet(_around(out, charter), judge, per_language, seed)


@app.command()
def calibrate(
    labels: Annotated[list[Path], typer.Argument(help="Labels from the page (.jsonl) or the table (.csv).")],
    out: Out = None,
    charter: Charter = None,
) -> None:
    """Hold the judges of a run against people's labels; the next report shows it."""
    from vcllm.commands import eval_people

    eval_people.calibrate_run(_around(out, charter), labels)


@app.command()
def show(
    path: Annotated[Path | None, typer.Argument(help="A report.json; default: that of the last run here.")] = None,
) -> None:
    """The table of the last training run: every stage and round on the held-out questions."""
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
        if "comparisons" in found and "judges" in found:
            raise CommandError(f"{file} is the report of `vcllm eval`: open {file.with_name('index.html')} instead.")
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


def _around(out: Path | None, charter: Path | None, concurrency: int = 16, patience_s: float = 120.0) -> Any:
    from vcllm.commands.eval_stages import Surroundings
    from vcllm.evaluation.runs import RunFolder

    home = Settings().home
    loaded: LoadedCharter = load_charter(charter)
    return Surroundings(open_console(), home, loaded, RunFolder(out or home / "eval"), concurrency, patience_s)


app.command("import")(eval_sets.import_)
app.command("import-lm-eval")(eval_sets.import_lm_eval)
app.command()(eval_sets.export)
