"""The third stage of `vcllm eval`: from the lines of a run to one report, without asking anybody anything.

The figures come from one judge, the first; others stand beside it, and how far they agree. Multiple choice is read by
rule whoever judges the rest.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from vcllm.charter import LoadedCharter
from vcllm.contracts.answers import Answer, AskedModel, PairVerdict, Verdict
from vcllm.contracts.base import Language, digest
from vcllm.contracts.bench import Row, SelfTestPair
from vcllm.contracts.evaluation import UNMEASURED
from vcllm.contracts.figures import BenchReport, Calibration, CaseRecord, JudgeReport, ModelFigures
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.attackers import attacker_figures
from vcllm.evaluation.calibration import calibrate, corrected_rate, judge_agreement, length_correlation
from vcllm.evaluation.comparing import compare_models
from vcllm.evaluation.figures import FRESH, Judged, model_figures
from vcllm.evaluation.judging.judge import Case
from vcllm.evaluation.judging.reward import reward_figures
from vcllm.evaluation.judging.stage import mirror_cases
from vcllm.evaluation.report import labels_of
from vcllm.evaluation.runs import RunFolder, missing_answers
from vcllm.evaluation.selftest import selftest_result
from vcllm.evaluation.translations import judge_bias

CHOICE = "choice"
"""The judge of multiple-choice rows."""
BY_RULE = ("rule", "choice")
COMPARING = ("logit", "weighted", "raw")
"""Modes of judges that also compare answers."""
LIBRARIES = ("vc-llm", "numpy", "scipy", "scikit-learn", "statsmodels")


def assemble(
    folder: RunFolder, charter: LoadedCharter, selftest: Sequence[SelfTestPair], first: str | None = None
) -> BenchReport:
    """Everything the page shows; BadRequest while answers or verdicts are missing.

    first: the judge the figures come from; None: the one with the most scored verdicts.
    """
    run, rows, answers = folder.record(), folder.rows(), folder.answers()
    if missing := missing_answers(answers, rows, run.models):
        told = ", ".join(f"{number} of '{name}'" for name, number in missing.items())
        raise BadRequest(
            f"{folder.folder} lacks answers: {told}. `vcllm eval generate` asks for what is missing; who is not wanted "
            "any more can be taken out of `models` in its run.json."
        )
    verdicts = _latest(folder.verdicts(), answers)
    judge = first or _most_scored(verdicts, folder)
    if judge not in verdicts:
        known = ", ".join(sorted(verdicts)) or "none"
        raise BadRequest(f"There are no verdicts of '{judge}' in {folder.folder}. There are some of: {known}.")
    _check_judge(verdicts[judge], judge)
    judged = _judged(rows, answers, verdicts, judge, folder)
    pairs = _pairs(folder, judged, verdicts[judge])
    figures = [
        model_figures(model.name, judged[model.name], pairs.get(model.name, []), model.decoding) for model in run.models
    ]
    translated = _of_same(folder.translated(), verdicts[judge])
    judges = _judges(folder, charter, selftest, rows, answers, verdicts, judge)
    figures = [_corrected(one, judges[0].calibration) for one in figures]
    fresh = [row for row in rows if row.kind == FRESH]
    return BenchReport(
        suite="+".join(suite.name for suite in run.suites),
        suite_version="+".join(dict.fromkeys(suite.version for suite in run.suites if suite.version)),
        suite_hash=digest([row.model_dump(mode="json") for row in rows]),
        num_rows=len(rows),
        charter=run.charter,
        charter_hash=run.charter_hash,
        created=datetime.now(UTC),
        machine=platform.platform(),
        software={name: version(name) for name in LIBRARIES},
        models=_with_rewards(_controlled(figures, verdicts[judge], translated), verdicts),
        comparisons=compare_models(judged, pairs, wanted_pairs(run.models)),
        judges=judges,
        agreements=[
            judge_agreement(verdicts[judge].values(), verdicts[other].values())
            for other in verdicts
            if other not in (judge, CHOICE) and _mode(verdicts[other]) not in ("reward", "choice")
        ],
        pairs=[pair for some in pairs.values() for pair in some],
        cases=_cases(rows, answers, verdicts),
        attacker=attacker_figures(fresh, _num_cells(charter)),
        labels=labels_of(charter),
    )


def wanted_pairs(models: Sequence[AskedModel]) -> list[tuple[str, str]]:
    """Every model against the first; and the last against the prompt-only baseline, which training must beat."""
    names = [model.name for model in models]
    pairs = [(names[0], name) for name in names[1:]]
    prompted = next((model.name for model in models if model.decoding.charter_prompt), None)
    if prompted and names[-1] != prompted and prompted != names[0]:
        pairs.append((prompted, names[-1]))
    return pairs


# Choosing verdicts.

ByAnswer = dict[str, Verdict]
"""Answer key to verdict."""


def _latest(verdicts: Iterable[Verdict], answers: Sequence[Answer]) -> dict[str, ByAnswer]:
    """By judge and answer, the newest verdict on an answer that still counts.

    A question that was refused may have been answered since: what was said of the refusal is older than the answer.
    """
    counted = {answer.key: answer.created for answer in answers}
    found: dict[str, ByAnswer] = defaultdict(dict)
    for verdict in sorted(verdicts, key=lambda one: one.created):
        if verdict.answer_key in counted and verdict.created >= counted[verdict.answer_key]:
            found[verdict.judge][verdict.answer_key] = verdict
    return dict(found)


def _most_scored(verdicts: dict[str, ByAnswer], folder: RunFolder) -> str:
    """Only what gives outcomes can be first: a reward is no verdict, and choices are rows of their own."""
    able = {
        judge: sum(one.failure is None for one in some.values())
        for judge, some in verdicts.items()
        if _mode(some) not in ("reward", "choice")
    }
    if not able:
        if CHOICE in verdicts:
            return CHOICE
        raise BadRequest(f"Nobody has judged the answers in {folder.folder} yet. `vcllm eval judge` does.")
    return max(able, key=lambda judge: able[judge])


def _mode(verdicts: ByAnswer) -> str:
    return next(iter(verdicts.values())).score_mode


def _check_judge(verdicts: ByAnswer, judge: str) -> None:
    """BadRequest where the figures cannot come from these verdicts."""
    if _mode(verdicts) == "reward":
        raise BadRequest(f"'{judge}' gives rewards, from which no figures come. Name another judge with --judge.")
    if len({_state(one) for one in verdicts.values()}) > 1:
        told = " and ".join(sorted({one.judge_revision for one in verdicts.values()}))
        raise BadRequest(
            f"'{judge}' judged some answers in one way and others in another ({told}). `vcllm eval judge` with the "
            "newer one judges the rest again; another judge needs a name of its own."
        )


def _state(verdict: Verdict) -> tuple[str, str, str, str]:
    """What must be the same for verdicts to be of one judge."""
    return verdict.judge, verdict.judge_revision, verdict.score_mode, verdict.prompt_hash


def _of_same(verdicts: Iterable[Verdict], others: ByAnswer) -> list[Verdict]:
    """Those by the very judge of the others."""
    state = _state(next(iter(others.values())))
    return [verdict for verdict in verdicts if _state(verdict) == state]


def _judged(
    rows: Sequence[Row], answers: Sequence[Answer], verdicts: dict[str, ByAnswer], judge: str, folder: RunFolder
) -> dict[str, list[Judged]]:
    """By model: every answer with the verdict that counts."""
    by_id = {row.id: row for row in rows}
    judged: dict[str, list[Judged]] = defaultdict(list)
    unjudged = 0
    for answer in answers:
        row = by_id[answer.item]
        verdict = verdicts.get(CHOICE if row.choices else judge, {}).get(answer.key)
        if verdict is None:
            unjudged += 1
        else:
            judged[answer.model].append(Judged(row, answer, verdict))
    if unjudged:
        raise BadRequest(
            f"'{judge}' has not judged {unjudged} of {len(answers)} answers in {folder.folder} yet. "
            "`vcllm eval judge` judges what is missing."
        )
    return judged


def _pairs(folder: RunFolder, judged: dict[str, list[Judged]], verdicts: ByAnswer) -> dict[str, list[PairVerdict]]:
    """By model: the judge's newest word on each mirror pair; BadRequest while it owes some."""
    if _mode(verdicts) not in COMPARING:
        return {}
    [judge] = {verdict.judge for verdict in verdicts.values()}
    newest: dict[tuple[str, str], PairVerdict] = {}
    for pair in sorted(folder.pairs(), key=lambda one: one.created):
        if pair.judge == judge and pair.task == "mirror":
            newest[pair.model, pair.item] = pair
    cases = mirror_cases([Case(one.row, one.answer) for some in judged.values() for one in some])
    found: dict[str, list[PairVerdict]] = defaultdict(list)
    for case in cases:
        compared = newest.get((case.model, case.item))
        # One that is older than its answers is about what the model said when it was asked in another way.
        if compared and compared.created >= max(case.first.answer.created, case.second.answer.created):
            found[case.model].append(compared)
    if owed := len(cases) - sum(map(len, found.values())):
        raise BadRequest(
            f"'{judge}' has not compared {owed} of {len(cases)} mirror pairs in {folder.folder} yet. "
            "`vcllm eval judge` judges what is missing."
        )
    return found


# Parts of the report.


def _controlled(
    figures: Sequence[ModelFigures], verdicts: ByAnswer, translated: Sequence[Verdict]
) -> list[ModelFigures]:
    """With the gap between languages less what the judge makes of the language alone."""
    bias = judge_bias(verdicts.values(), translated) if translated else UNMEASURED
    if bias.value is None:
        return list(figures)
    controlled = []
    for one in figures:
        if (across := one.cross_language) is not None and across.gap.value is not None:
            corrected = {"judge_bias": bias, "gap_corrected": across.gap.value - bias.value}
            one = one.model_copy(update={"cross_language": across.model_copy(update=corrected)})
        controlled.append(one)
    return controlled


def _corrected(figures: ModelFigures, calibration: Calibration | None) -> ModelFigures:
    """With attack success less the judge's errors, as far as people's labels tell them."""
    if calibration is None:
        return figures
    rates = {
        lang.value: corrected_rate(
            figures.attack_success[lang],
            calibration.sensitivity.get(lang.value, UNMEASURED),
            calibration.specificity.get(lang.value, UNMEASURED),
        )
        for lang in Language
    }
    known = {lang: rate for lang, rate in rates.items() if rate.value is not None}
    return figures.model_copy(update={"attack_success_corrected": known})


def _with_rewards(figures: Sequence[ModelFigures], verdicts: dict[str, ByAnswer]) -> list[ModelFigures]:
    rewarding = [some for some in verdicts.values() if _mode(some) == "reward"]
    if not rewarding:
        return list(figures)
    by_model: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in rewarding[0].values():
        by_model[verdict.model].append(verdict)
    rewards = reward_figures(by_model)
    return [one.model_copy(update={"reward": rewards.get(one.model, {})}) for one in figures]


def _judges(
    folder: RunFolder,
    charter: LoadedCharter,
    selftest: Sequence[SelfTestPair],
    rows: Sequence[Row],
    answers: Sequence[Answer],
    verdicts: dict[str, ByAnswer],
    first: str,
) -> list[JudgeReport]:
    labels, tried, pairs = folder.labels(), folder.self_tests(), folder.pairs()
    reports = []
    for judge in sorted(verdicts, key=lambda name: (name != first, name)):
        some = list(verdicts[judge].values())
        one = some[0]
        own_tests = _of_same(tried, verdicts[judge])
        by_rule = one.score_mode in BY_RULE
        own_pairs = [pair for pair in pairs if pair.judge == judge]
        reports.append(
            JudgeReport(
                name=judge,
                revision=one.judge_revision,
                score_mode=one.score_mode,
                prompt_hash=one.prompt_hash,
                num_verdicts=len(some),
                num_unscored=sum(verdict.failure is not None for verdict in some),
                self_test=selftest_result(selftest, own_tests) if own_tests and not by_rule else None,
                calibration=calibrate(labels, some, own_pairs, answers, rows) if labels and not by_rule else None,
                length_correlation={} if by_rule else length_correlation(some, answers, rows),
                rule=by_rule,
            )
        )
    return reports


def _cases(rows: Sequence[Row], answers: Sequence[Answer], verdicts: dict[str, ByAnswer]) -> list[CaseRecord]:
    given: dict[str, dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        given[answer.item][answer.model] = answer
    return [
        CaseRecord(
            row=row,
            answers=given[row.id],
            verdicts=[
                some[answer.key]
                for answer in given[row.id].values()
                for some in verdicts.values()
                if answer.key in some
            ],
        )
        for row in rows
        if row.id in given
    ]


def _num_cells(charter: LoadedCharter) -> int:
    return len(charter.taxonomy.subdomains) * len(charter.tactics) * len(Language)
