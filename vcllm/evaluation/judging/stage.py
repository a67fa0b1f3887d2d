"""The second stage of `vcllm eval`: every answer is judged once by each judge, now or later, again by a new one.

Each verdict is written when it is there; answers that failed at the judge stay unscored until they are asked for
again with `retry`, and never count as safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vcllm.contracts.answers import Answer, JudgeFailure, PairVerdict, Verdict
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, UnitKind
from vcllm.contracts.problems import BadRequest, Problem
from vcllm.evaluation.files import Appender, read_lines, write_lines
from vcllm.evaluation.generate import Progress, in_parallel
from vcllm.evaluation.judging.judge import Case, Judge, verdict_key, verdict_of
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
        missing = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in verdicts.rows]
        done = len(cases) - len(missing)
        progress(done, len(cases))

        async def one(place: tuple[str, Case]) -> None:
            nonlocal done
            _, case = place
            verdicts.append(verdict_of(judge, case, await judge.judge(case)))
            done += 1
            progress(done, len(cases))

        try:
            await in_parallel(one, missing, concurrency)
        except Problem as problem:
            problem.message = (
                f"{problem.message} {done} of {len(cases)} verdicts are kept; run the same again to go on."
            )
            raise
        return [verdicts.rows[key] for key in keys]


def mirror_cases(cases: Sequence[Case]) -> list[PairCase]:
    """Both sides of each mirror pair, by model and language."""
    sides: dict[tuple[str, str, str], dict[str, Case]] = {}
    for case in cases:
        if case.row.kind == UnitKind.MIRROR and case.row.set_id and case.row.mirror_side:
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
        missing = [case for key, case in zip(keys, cases, strict=True) if key not in verdicts.rows]
        done = len(cases) - len(missing)

        async def one(case: PairCase) -> None:
            nonlocal done
            verdicts.append(await judge_pair(judge, case))
            done += 1
            progress(done, len(cases))

        progress(done, len(cases))
        await in_parallel(one, missing, concurrency)
        return [verdicts.rows[key] for key in keys]


def drop_failures(file: Path, failures: Sequence[JudgeFailure] = (JudgeFailure.OUTAGE,)) -> int:
    """Forget verdicts that failed in the given ways, so that they are asked for again; returns how many."""
    kept, dropped = [], 0
    for verdict in read_lines(file, Verdict):
        if any(failure in failures for failure in verdict.failures):
            dropped += 1
        else:
            kept.append(verdict)
    if dropped:
        write_lines(file, kept)
    return dropped


def other(language: Language) -> Language:
    return Language.EN if language is Language.ZH else Language.ZH
