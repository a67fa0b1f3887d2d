"""The second stage of `vcllm eval`: every answer is judged once by each judge, now or later, again by a new one.

Each verdict is written when it is there; answers that failed at the judge stay unscored until they are asked for
again with `retry`, and never count as safe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from vcllm.contracts.answers import Answer, JudgeFailure, PairVerdict, Verdict
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, UnitKind
from vcllm.contracts.problems import BadRequest, Problem
from vcllm.evaluation.files import Appender, read_lines, write_lines
from vcllm.evaluation.generate import Progress, in_parallel
from vcllm.evaluation.judging.judge import Case, Finding, Judge, unscored, verdict_key, verdict_of
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.pairs import PairCase, judge_pair, pair_key


def cases_of(rows: Sequence[Row], answers: Iterable[Answer]) -> list[Case]:
    """Every answer with its row; raises BadRequest for an answer to a row that is not there."""
    by_id = {row.id: row for row in rows}
    twins = {(row.pair_id, row.lang): row for row in rows}
    cases = []
    for answer in answers:
        row = by_id.get(answer.item)
        if row is None:
            raise BadRequest(f"There is an answer to '{answer.item}', which is in no suite given. Give its suite too.")
        if len(answer.texts) != len(row.prompt):
            raise BadRequest(f"The answer to '{answer.item}' has {len(answer.texts)} turns, the row {len(row.prompt)}.")
        cases.append(Case(row, answer, twins.get((row.pair_id, other(row.lang)))))
    return cases


async def judge_answers(
    cases: Sequence[Case],
    judge: Judge,
    file: Path,
    *,
    concurrency: int = 16,
    progress: Progress = lambda done, total: None,
) -> list[Verdict]:
    """Verdicts on all cases, in their order, earlier ones among them; raises Problem when the judge is gone."""
    keys = [verdict_key(judge, case) for case in cases]
    with Appender(file, Verdict) as verdicts:
        missing = {key: case for key, case in zip(keys, cases, strict=True) if key not in verdicts.rows}
        done, total = len(set(keys)) - len(missing), len(set(keys))
        progress(done, total)

        async def one(case: Case) -> None:
            nonlocal done
            verdicts.append(verdict_of(judge, case, await _findings(judge, case)))
            done += 1
            progress(done, total)

        try:
            await in_parallel(one, missing.values(), concurrency)
        except Problem as problem:
            problem.message = f"{problem.message} {done} of {total} verdicts are kept; run the same again to go on."
            raise
        return [verdicts.rows[key] for key in keys]


async def _findings(judge: Judge, case: Case) -> list[Finding]:
    """What was never answered is unscored, whoever judges."""
    if case.answer.is_missing:
        return [unscored(JudgeFailure.NO_ANSWER, [case.answer.fault]) for _ in case.answer.texts]
    return await judge.judge(case)


def mirror_cases(cases: Sequence[Case]) -> list[PairCase]:
    """Both sides of each mirror pair, by model and language."""
    sides: dict[tuple[str, str, str], dict[str, Case]] = {}
    for case in cases:
        if case.row.kind == UnitKind.MIRROR and case.row.set_id and case.row.mirror_side and not case.answer.is_missing:
            place = (case.answer.model, case.row.set_id, case.row.lang)
            sides.setdefault(place, {})[case.row.mirror_side] = case
    return [PairCase("mirror", both["a"], both["b"]) for both in sides.values() if len(both) == 2]


def versus_cases(cases: Sequence[Case], before: str, after: str) -> list[PairCase]:
    """The answers of two models to each row that both answered."""
    by_model = {model: {c.row.id: c for c in cases if c.answer.model == model} for model in (before, after)}
    return [
        PairCase("versus", one, by_model[after][id]) for id, one in by_model[before].items() if id in by_model[after]
    ]


async def judge_pairs(
    cases: Sequence[PairCase],
    judge: ModelJudge,
    file: Path,
    *,
    concurrency: int = 16,
    progress: Progress = lambda done, total: None,
) -> list[PairVerdict]:
    """As `judge_answers`, for two answers at a time."""
    keys = [pair_key(judge, case) for case in cases]
    with Appender(file, PairVerdict) as verdicts:
        missing = {key: case for key, case in zip(keys, cases, strict=True) if key not in verdicts.rows}
        done, total = len(set(keys)) - len(missing), len(set(keys))
        progress(done, total)

        async def one(case: PairCase) -> None:
            nonlocal done
            verdicts.append(await judge_pair(judge, case))
            done += 1
            progress(done, total)

        try:
            await in_parallel(one, missing.values(), concurrency)
        except Problem as problem:
            problem.message = f"{problem.message} {done} of {total} pairs are kept; run the same again to go on."
            raise
        return [verdicts.rows[key] for key in keys]


def drop_failures(
    file: Path,
    failures: Sequence[JudgeFailure] = (JudgeFailure.OUTAGE,),
    model: type[Verdict] | type[PairVerdict] = Verdict,
    judges: Collection[str] | None = None,
) -> int:
    """Forget verdicts that failed in the given ways, so that they are asked for again; returns how many.

    judges: whose, by name; None: everybody's.
    """
    if not file.exists():
        return 0
    # Held while it is replaced: nobody may be adding lines to the old file.
    with Appender(file, model):
        rows = list(read_lines(file, model))
        kept = [
            row
            for row in rows
            if (judges is not None and row.judge not in judges) or not set(_failures(row)) & set(failures)
        ]
        if len(kept) < len(rows):
            write_lines(file, kept)
    return len(rows) - len(kept)


def _failures(row: Verdict | PairVerdict) -> list[JudgeFailure | None]:
    return row.failures if isinstance(row, Verdict) else [row.failure]


def other(language: Language) -> Language:
    return Language.EN if language is Language.ZH else Language.ZH
