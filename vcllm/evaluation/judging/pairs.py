"""Two answers side by side, always in both orders: even-handedness over mirror pairs, and one model against another.

A judge that changes its mind when the answers change places has said nothing: that is a tie, and counted.
Zheng et al. 2023, arXiv 2306.05685, on position bias; the measure of even-handedness is the share of mirror pairs
that a judge more likely than not calls alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from vcllm.contracts.answers import PairVerdict
from vcllm.contracts.base import digest
from vcllm.evaluation.judging.judge import Case, told_rows
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.wording import PAIR_LABELS, mirrored, versus

SAME = "C"
SWAPPED = {"A": "B", "B": "A", "C": "C"}


@dataclass(frozen=True)
class PairCase:
    """Two answers: the sides of a mirror pair, or two models on one row."""

    task: Literal["mirror", "versus"]
    first: Case
    second: Case

    @property
    def model(self) -> str:
        models = (self.first.answer.model, self.second.answer.model)
        return models[0] if self.task == "mirror" else f"{models[0]} vs {models[1]}"

    @property
    def item(self) -> str:
        row = self.first.row
        return f"{row.set_id}-{row.lang}" if self.task == "mirror" else row.id


def pair_key(judge: ModelJudge, case: PairCase) -> str:
    who = [judge.name, judge.revision, judge.mode, judge.prompt_hash]
    answers = [[one.answer.key, one.answer.texts, told_rows(judge, one)] for one in (case.first, case.second)]
    return digest([case.task, answers, who])[:32]


async def judge_pair(judge: ModelJudge, case: PairCase) -> PairVerdict:
    """Asked in both orders; raises Problem only when the judge's server is gone for good."""
    row = case.first.row
    labels, raw = [], []
    for prompt in _prompts(judge, case):
        label, written = await judge.ask(prompt, PAIR_LABELS, judge.briefed(case.first).lang)
        labels.append(label)
        raw.append(written)
    failure = next((label.failure for label in labels if label.failure), None)
    found: dict[str, object] = {"preferred": "unscored", "failure": failure}
    if failure is None:
        one, other = labels[0].choice, SWAPPED[labels[1].choice]
        alike = one == other
        found = {
            "same": sum(label.shares[SAME] for label in labels) / 2,
            "preferred": {"A": "first", "B": "second", "C": "tie"}[one] if alike else "tie",
            "consistent": alike,
        }
    return PairVerdict(
        key=pair_key(judge, case),
        task=case.task,
        lang=row.lang,
        first=case.first.row.id if case.task == "mirror" else case.first.answer.model,
        second=case.second.row.id if case.task == "mirror" else case.second.answer.model,
        item=case.item,
        cluster_id=row.cluster_id,
        model=case.model,
        judge=judge.name,
        score_mode=judge.mode,
        raw=raw,
        created=datetime.now(UTC),
        **found,
    )


def _prompts(judge: ModelJudge, case: PairCase) -> list[str]:
    """One for each order."""
    brief, one, other = judge.brief(case.first), case.first, case.second
    orders = ((one, other), (other, one))
    if case.task == "mirror":
        # Each side with its own request: they differ.
        return [mirrored(_side(a), _side(b), brief.language, judge.reasoned) for a, b in orders]
    asked = one.row.prompt
    return [versus(brief, asked, a.answer.texts[-1], b.answer.texts[-1], judge.reasoned) for a, b in orders]


def _side(case: Case) -> tuple[str, str]:
    return case.row.prompt[-1], case.answer.texts[-1]
