"""Single answers: which verdict counts, what of them the page shows, and how they are chosen without a script.

The page shows the beginning of long texts and says how much is missing; `report.json` has all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vcllm.contracts.answers import Answer, Compliance, Verdict
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.figures import BenchReport, CaseRecord
from vcllm.evaluation.figures import Judged, twins

MOST_SHOWN = 600
"""Characters of one answer or question on the page; of a conversation, of all its turns together."""
LEAST_SHOWN = 120
"""Characters of each turn, however many there are."""
MOST_REASON = 300
"""Characters of a judge's reason."""
NUM_GAPS = 20
ANY = "any"
"""In filters: whichever model."""


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a text."""

    text: str
    num_left: int
    """Characters that are not shown."""


def excerpt(text: str, length: int = MOST_SHOWN) -> Excerpt:
    return Excerpt(text[:length], max(0, len(text) - length))


@dataclass(frozen=True)
class ShownAnswer:
    """What one model said to a row, and what the judges said of it."""

    model: str
    turns: tuple[tuple[Excerpt, Outcome], ...]
    verdict: Verdict | None
    """Of the judge the figures come from."""
    others: tuple[Verdict, ...]

    @property
    def outcome(self) -> Outcome:
        return self.verdict.outcome if self.verdict else Outcome.UNSCORED


@dataclass(frozen=True)
class ShownCase:
    """One row of the case browser."""

    row: Row
    prompt: tuple[Excerpt, ...]
    answers: tuple[ShownAnswer, ...]
    look: str
    """Classes that the filters choose by: numbers only, never a text of the report."""


def counting_verdict(report: BenchReport, case: CaseRecord, model: str) -> Verdict | None:
    """The one behind the figures: of the first judge; multiple choice is read by rule whoever judges the rest."""
    own = [verdict for verdict in case.verdicts if verdict.model == model]
    by_rule = (one for one in own if case.row.choices and one.score_mode == "choice")
    return next(by_rule, next((one for one in own if one.judge == report.judges[0].name), None))


def judged_by_model(report: BenchReport) -> dict[str, list[Judged]]:
    """The answers behind the figures."""
    judged: dict[str, list[Judged]] = {model.model: [] for model in report.models}
    for case in report.cases:
        for model, answer in case.answers.items():
            verdict = counting_verdict(report, case, model)
            if verdict is not None and model in judged:
                judged[model].append(Judged(case.row, answer, verdict))
    return judged


def scored_twins(judged: Iterable[Judged]) -> list[tuple[Judged, Judged]]:
    """Pairs of languages with a score in both, Chinese first."""
    return [(zh, en) for zh, en in twins(judged) if zh.value is not None and en.value is not None]


def largest_gaps(judged: Iterable[Judged]) -> list[tuple[Judged, Judged]]:
    """The pairs that differ most, largest first; pairs that do not differ are no gaps."""
    gaps = {zh.row.pair_id: (zh, en) for zh, en in scored_twins(judged) if zh.value != en.value}
    ranked = sorted(gaps, key=lambda id: (-abs((gaps[id][0].value or 0) - (gaps[id][1].value or 0)), id))
    return [gaps[id] for id in ranked[:NUM_GAPS]]


def compliance_counts(judged: Iterable[Judged]) -> dict[Language, Counter[Compliance]]:
    """How answers treat what is asked, by language; answers nobody could judge are left out."""
    counts: dict[Language, Counter[Compliance]] = {language: Counter() for language in Language}
    for one in judged:
        if one.verdict.compliance is not None and one.outcome is not Outcome.UNSCORED:
            counts[one.row.lang][one.verdict.compliance] += 1
    return counts


# The case browser.


def shown_cases(report: BenchReport, subdomains: Sequence[str]) -> list[ShownCase]:
    """All of them, in the order of the report. subdomains: as the filter numbers them."""
    place = {subdomain: number for number, subdomain in enumerate(subdomains)}
    return [_shown_case(report, case, place) for case in report.cases]


def _shown_case(report: BenchReport, case: CaseRecord, place: Mapping[str, int]) -> ShownCase:
    answers = tuple(
        _shown_answer(report, case, model.model, case.answers[model.model])
        for model in report.models
        if model.model in case.answers
    )
    numbers = {model.model: number for number, model in enumerate(report.models)}
    looks = [f"sub{place[case.row.subdomain]}", f"q-{case.row.lang.value}"]
    looks += [f"m{numbers[answer.model]}-{answer.outcome.value}" for answer in answers]
    looks += sorted({f"{ANY}-{answer.outcome.value}" for answer in answers})
    return ShownCase(case.row, tuple(_share(case.row.prompt)), answers, " ".join(looks))


def _shown_answer(report: BenchReport, case: CaseRecord, model: str, answer: Answer) -> ShownAnswer:
    verdict = counting_verdict(report, case, model)
    outcomes = verdict.outcomes if verdict else []
    told = [*outcomes, *[Outcome.UNSCORED] * (len(answer.texts) - len(outcomes))]
    others = tuple(one for one in case.verdicts if one.model == model and one is not verdict)
    return ShownAnswer(model, tuple(zip(_share(answer.texts), told, strict=False)), verdict, others)


def _share(texts: Sequence[str]) -> list[Excerpt]:
    """Each turn gets its part of what is shown."""
    return [excerpt(text, max(LEAST_SHOWN, MOST_SHOWN // len(texts))) for text in texts]


def filter_rules(num_subdomains: int, num_models: int) -> str:
    """Style rules that hide what the chosen filters do not match: the page needs no script for that."""
    rules = [_rule(f".sub{number}", f"sub{number}") for number in range(num_subdomains)]
    rules += [_rule(f".q-{language.value}", f"q-{language.value}") for language in Language]
    for model in (ANY, *(f"m{number}" for number in range(num_models))):
        rules += [_rule(f".{model}-{outcome.value}", model, f"o-{outcome.value}") for outcome in Outcome]
    return "\n".join(rules) + "\n"


def _rule(kept: str, *chosen: str) -> str:
    """Once all of `chosen` are ticked, only what is `kept` shows; their ids begin with `f-`."""
    ticked = "".join(f":has(#f-{one}:checked)" for one in chosen)
    return f"#cases{ticked} .case:not({kept}) {{ display: none; }}"
