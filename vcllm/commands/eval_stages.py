"""What the stages of `vcllm eval` do on this machine: they connect suites, models, judges and the folder of a run.

Brings the statistics libraries with it, so the command line loads it only when an evaluation is asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from vcllm.charter import LoadedCharter
from vcllm.commands.errors import CommandError
from vcllm.commands.eval_models import Source, Trained, key_for, opened, refuse_secrets
from vcllm.commands.eval_progress import shown
from vcllm.contracts.answers import Answer, Decoding, JudgeFailure, PairVerdict, Verdict
from vcllm.contracts.bench import SelfTestPair
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.figures import PRIMARIES, BenchReport, JudgeReport
from vcllm.evaluation.assemble import assemble
from vcllm.evaluation.bench.load import load_bench
from vcllm.evaluation.benchpage import write_bench_report
from vcllm.evaluation.endpoint import Endpoint, Target
from vcllm.evaluation.generate import generate
from vcllm.evaluation.judging.build import BuiltJudge, build_judge
from vcllm.evaluation.judging.choices import ChoiceReader
from vcllm.evaluation.judging.judge import Case, Judge
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.pairs import PairCase
from vcllm.evaluation.judging.stage import (
    cases_of,
    drop_failures,
    judge_answers,
    judge_pairs,
    mirror_cases,
    versus_cases,
)
from vcllm.evaluation.runs import RunFolder, missing_answers
from vcllm.evaluation.selftest import selftest_cases
from vcllm.evaluation.suites import NAMES, Suite, load_suite
from vcllm.evaluation.translations import translation_cases
from vcllm.starter.questions import GOLD, GoldJudge, fresh_rows, starter_rows

STARTER, FRESH = "starter", "fresh"
STARTER_PAIRS = 25
"""Pairs of languages of each of the starter's four suites."""
STARTER_CARDS = 5
"""Of each sub-domain: those that the starter's recipes train on."""
STARTER_DECODING = Decoding(temperature=0.7, max_tokens=64)
TESTED = ("logit", "weighted", "raw")
"""Modes that score by the rubric."""
NO_FIGURES = ("reward", "choice")
"""Modes that the figures never come from."""
PASSING = (JudgeFailure.OUTAGE, JudgeFailure.JUDGE_REFUSED, JudgeFailure.TRUNCATED, JudgeFailure.PARSE_ERROR)
"""What `--retry` asks for again."""


@dataclass(frozen=True)
class Surroundings:
    """Where an evaluation runs."""

    console: Console
    home: Path
    charter: LoadedCharter
    folder: RunFolder
    concurrency: int = 16
    patience_s: float = 120.0


# Which questions.


def chosen_suites(names: Sequence[str], around: Surroundings, model: Trained | None) -> list[Suite]:
    """Those that are named; by default those that the run has already, or else those that suit the served model."""
    if names:
        return [suite_named(name, around, model) for name in dict.fromkeys(names)]
    if around.folder.is_begun:
        return []
    own = [_starter(around, model), _fresh(around, model)] if _is_starter(model) else []
    return [suite_named("smoke", around, model), *(suite for suite in own if suite.rows)]


def suite_named(name: str, around: Surroundings, model: Trained | None) -> Suite:
    """A suite by name or file. `starter` and `fresh` are about the model this machine serves."""
    if name == STARTER:
        return _starter(around, model)
    if name == FRESH:
        if not (fresh := _fresh(around, model)).rows:
            raise CommandError("The suite 'fresh' is empty: the model that is served has been through no rounds.")
        return fresh
    if name not in NAMES and not Path(name).is_file():
        raise CommandError(f"There is no suite '{name}'. Use {', '.join((*NAMES, STARTER, FRESH))}, or a file of rows.")
    return load_suite(name)


def decoding_for(model: Trained | None, temperature: float | None, max_tokens: int | None, seed: int) -> Decoding:
    """As told; where nothing is told, as suits the model: what a starter does is a matter of chance, see its world."""
    usual = STARTER_DECODING if _is_starter(model) else Decoding()
    told = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    return usual.model_copy(update={name: value for name, value in told.items() if value is not None})


def _is_starter(model: Trained | None) -> bool:
    return model is not None and model.starter


def _starter(around: Surroundings, model: Trained | None) -> Suite:
    _check_charter(around, model)
    rows = starter_rows(around.charter.with_first_cards(STARTER_CARDS), STARTER_PAIRS)
    return Suite(STARTER, around.charter.hash[:12], tuple(rows))


def _fresh(around: Surroundings, model: Trained | None) -> Suite:
    if model is None:
        raise CommandError("The suite 'fresh' needs the rounds of a model that was trained on this machine.")
    _check_charter(around, model)
    rows = fresh_rows(around.charter, around.home / "lineages" / model.lineage)
    return Suite(FRESH, model.lineage, tuple(rows))


def _check_charter(around: Surroundings, model: Trained | None) -> None:
    if model is not None and model.charter != around.charter.hash:
        raise CommandError(
            f"'{model.lineage}' was trained under another charter, so that its questions would be others. Name that "
            "charter's folder with --charter, or other suites with --suite."
        )


# Asking.


def ask(around: Surroundings, suites: Sequence[Suite], sources: Sequence[Source], decoding: Decoding) -> None:
    """Every row of the run to every model; what was answered before is not asked again."""
    around.folder.begin_all(suites, around.charter)
    for source in sources:
        around.folder.note(source.asked(decoding))
    for source in sources:
        _ask(around, source, decoding)


def _ask(around: Surroundings, source: Source, decoding: Decoding) -> None:
    model = source.asked(decoding)
    if not missing_answers(around.folder.answers(), around.folder.rows(), [model]):
        say(around.console, f"answers of {source.name}: all are there")
        return
    # The folder's server is started outside of the event loop, which would put an interruption off until it is ready.
    with opened(source) as target:
        answers = asyncio.run(_answers(around, source.name, model.decoding, target))
    if untaken := [answer for answer in answers if answer.is_missing]:
        say(
            around.console,
            f"{source.name} would not take {len(untaken)} of {len(answers)} questions; they count as unscored. "
            f"The first: {untaken[0].item}: {untaken[0].fault}",
        )


async def _answers(around: Surroundings, name: str, decoding: Decoding, target: Target) -> list[Answer]:
    with shown(around.console, f"answers of {name}") as progress:
        async with Endpoint(target, patience_s=around.patience_s) as endpoint:
            return await generate(
                around.folder.rows(),
                endpoint,
                around.folder.answers_file,
                model=name,
                decoding=decoding,
                charter=around.charter,
                concurrency=around.concurrency,
                progress=progress,
            )


# Judging.


def default_judges(around: Surroundings) -> list[str]:
    """Whoever can read the run's rows without being told how; CommandError where that is nobody."""
    around.folder.record()
    if any(row.scorer == GOLD for row in around.folder.rows()):
        return [GOLD]
    raise CommandError("Say who judges: --judge NAME=URL#MODEL. It must not be the Critic of the training.")


def check_judges(around: Surroundings, specs: Sequence[str], guards: Sequence[str]) -> list[str]:
    """Names of those that figures can come from; raises for a spec that is none, before anybody is asked for hours."""

    async def names() -> list[str]:
        async with AsyncExitStack() as open_judges:
            judges = await _built(specs, guards, around, open_judges)
            return [judge.name for judge in judges if judge.mode not in NO_FIGURES]

    return asyncio.run(names())


def leading(around: Surroundings, names: Sequence[str]) -> str | None:
    """The first of these judges that has judged something; None: none of them."""
    known = {verdict.judge for verdict in around.folder.verdicts()}
    return next((name for name in names if name in known), None)


def judge_run(around: Surroundings, specs: Sequence[str], guards: Sequence[str], retry: bool, self_test: bool) -> None:
    """Every answer by every judge; choices by rule; mirror pairs side by side; and the judges' self-test."""
    around.folder.under(around.charter)
    asyncio.run(_judge(around, specs, guards, retry, self_test))


async def _judge(
    around: Surroundings, specs: Sequence[str], guards: Sequence[str], retry: bool, self_test: bool
) -> None:
    async with AsyncExitStack() as open_judges:
        judges = await _built(specs, guards, around, open_judges)
        if retry:
            _forget_failures(around, [judge.name for judge in judges])
        cases = cases_of(around.folder.rows(), around.folder.answers())
        if not cases:
            raise CommandError(
                f"There are no answers in {around.folder.folder} yet. `vcllm eval generate` asks for them."
            )
        with_choices = [case for case in cases if case.row.choices]
        if with_choices:
            await _judged(around, ChoiceReader(), with_choices, around.folder.verdicts_file, "choices")
        free = [case for case in cases if not case.row.choices]
        for judge in judges:
            await _judged(around, judge, free, around.folder.verdicts_file, f"verdicts of {judge.name}")
            if isinstance(judge, ModelJudge):
                await _compared(around, judge, mirror_cases(free))
                await _translated(around, judge, free)
            if self_test and judge.mode in TESTED:
                await _self_tested(around, judge)


def _forget_failures(around: Surroundings, names: Sequence[str]) -> None:
    files = (around.folder.verdicts_file, around.folder.translated_file, around.folder.selftest_file)
    dropped = sum(drop_failures(file, PASSING, judges=names) for file in files)
    dropped += drop_failures(around.folder.pairs_file, PASSING, PairVerdict, names)
    say(around.console, f"{dropped} verdicts that had failed are asked for again.")


async def _built(
    specs: Sequence[str], guards: Sequence[str], around: Surroundings, open_judges: AsyncExitStack
) -> list[Judge]:
    for spec in (*specs, *guards):
        refuse_secrets(spec)
    judges = [await _built_one(spec, guards, around, open_judges) for spec in specs]
    if len({judge.name for judge in judges}) < len(judges):
        raise CommandError("Two judges have the same name. Every --judge needs a name of its own before the '='.")
    if guards and not any(isinstance(judge, ModelJudge) for judge in judges):
        raise CommandError("A --guard stands behind a judge that scores by the rubric. Name one with --judge.")
    return judges


async def _built_one(spec: str, guards: Sequence[str], around: Surroundings, open_judges: AsyncExitStack) -> Judge:
    if spec == GOLD:
        return GoldJudge(around.charter)
    built: BuiltJudge = build_judge(spec, around.charter, key_for, guards=guards, patience_s=around.patience_s)
    return await open_judges.enter_async_context(built)


async def _judged(around: Surroundings, judge: Judge, cases: Sequence[Case], file: Path, title: str) -> list[Verdict]:
    with shown(around.console, title) as progress:
        return await judge_answers(cases, judge, file, concurrency=around.concurrency, progress=progress)


async def _compared(around: Surroundings, judge: ModelJudge, pairs: Sequence[PairCase]) -> list[PairVerdict]:
    with shown(around.console, f"pairs of answers by {judge.name}") as progress:
        return await judge_pairs(
            pairs,
            judge,
            around.folder.pairs_file,
            concurrency=around.concurrency,
            progress=progress,
        )


async def _translated(around: Surroundings, judge: Judge, cases: Sequence[Case]) -> None:
    """What the judge makes of checked translations, where the run has some."""
    if translations := around.folder.translations():
        again = translation_cases(translations, cases)
        await _judged(around, judge, again, around.folder.translated_file, f"translations by {judge.name}")


# Two models side by side.


def compare_run(around: Surroundings, specs: Sequence[str], before: str, after: str) -> None:
    """Have the answers of two models to the same rows compared, in both orders, and say who is preferred."""
    asyncio.run(_versus(around, specs, before, after))


async def _versus(around: Surroundings, specs: Sequence[str], before: str, after: str) -> None:
    around.folder.under(around.charter)
    cases = cases_of(around.folder.rows(), around.folder.answers())
    pairs = versus_cases([case for case in cases if not case.row.choices], before, after)
    if not pairs:
        known = ", ".join(model.name for model in around.folder.record().models)
        raise CommandError(f"'{before}' and '{after}' have answered no question both. The run has: {known}.")
    async with AsyncExitStack() as open_judges:
        for judge in await _built(specs, (), around, open_judges):
            if not isinstance(judge, ModelJudge):
                raise CommandError(f"'{judge.name}' cannot compare answers: name a language model.")
            _say_preferred(around, judge.name, await _compared(around, judge, pairs), before, after)


def _say_preferred(around: Surroundings, judge: str, found: Sequence[PairVerdict], before: str, after: str) -> None:
    scored = [pair for pair in found if pair.preferred != "unscored"]
    counts = Counter(pair.preferred for pair in scored)
    steady = sum(bool(pair.consistent) for pair in scored)
    say(
        around.console,
        f"{judge}: '{after}' is better on {counts['second']}, '{before}' on {counts['first']}, neither on "
        f"{counts['tie']} of {len(scored)} questions; the same in both orders on {steady}; "
        f"{len(found) - len(scored)} unscored.",
    )


# The self-test.


def self_test_run(around: Surroundings, specs: Sequence[str]) -> dict[str, list[Verdict]]:
    """Let judges take the self-test, without a run; their verdicts, by judge. What failed before is asked again."""
    return asyncio.run(_self_test(around, specs))


async def _self_test(around: Surroundings, specs: Sequence[str]) -> dict[str, list[Verdict]]:
    async with AsyncExitStack() as open_judges:
        judges = await _built(specs, (), around, open_judges)
        if untested := [judge.name for judge in judges if judge.mode not in TESTED]:
            raise CommandError(f"'{untested[0]}' gives no scores by the rubric, so there is nothing to test.")
        drop_failures(around.folder.selftest_file, PASSING, judges=[judge.name for judge in judges])
        return {judge.name: await _self_tested(around, judge) for judge in judges}


async def _self_tested(around: Surroundings, judge: Judge) -> list[Verdict]:
    cases = selftest_cases(load_bench().selftest)
    return await _judged(around, judge, cases, around.folder.selftest_file, f"self-test of {judge.name}")


def self_test_pairs(around: Surroundings) -> Sequence[SelfTestPair]:
    """Those of the set, where some judge of the run took the self-test."""
    return load_bench().selftest if around.folder.self_tests() else ()


# Reporting.


def report_run(around: Surroundings, first: str | None) -> BenchReport:
    """Write the report and print its endpoints."""
    report = assemble(around.folder, around.charter, self_test_pairs(around), first)
    write_bench_report(report, around.folder.report)
    print_endpoints(around.console, report)
    say(around.console, f"With all figures, intervals and cases: {(around.folder.report / 'index.html').resolve()}")
    return report


def print_endpoints(console: Console, report: BenchReport) -> None:
    """The five endpoints of every model, in percent, with intervals."""
    judge = report.judges[0]
    title = f"{report.num_rows} questions, judged by {judge.name}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for name in PRIMARIES:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("unscored", justify="right")
    for model in report.models:
        figures = [_percent(model.primary(name)) for name in PRIMARIES]
        table.add_row(model.model, *figures, f"{model.num_unscored} of {model.num_answers}")
    console.print(table)
    if not judge.validated:
        say(console, f"Judge not validated: '{judge.name}' {_shortcoming(judge)}. Read no figure as a finding.")


def _shortcoming(judge: JudgeReport) -> str:
    if judge.self_test is None:
        return "has not taken the self-test"
    return "misses limits against people's labels" if judge.self_test.passed else "has not passed the self-test"


def _percent(measure: Measure) -> str:
    if measure.value is None or measure.low is None or measure.high is None:
        return "-" if measure.value is None else f"{100 * measure.value:.1f}"
    return f"{100 * measure.value:.1f} ({100 * measure.low:.1f}-{100 * measure.high:.1f})"


def say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
