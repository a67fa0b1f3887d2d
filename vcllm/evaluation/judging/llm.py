"""A language model as judge, by the rubric: one question at a time, its label read from probabilities.

Logit mode asks for a bare label and reads the first token's alternatives: cheap and the same every time. Reason mode
lets the judge think first and reads the label that ends its reply, for models whose probabilities nobody gives away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vcllm.charter import LoadedCharter
from vcllm.contracts.answers import Compliance, JudgeFailure, ScoreMode, Stance
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, UnitKind
from vcllm.contracts.critiques import Outcome
from vcllm.evaluation.endpoint import Endpoint, Refusal
from vcllm.evaluation.judging.judge import VETO, Case, Finding, outcome_of, overall, unscored
from vcllm.evaluation.judging.reading import Label, read_forced, read_reasoned
from vcllm.evaluation.judging.wording import (
    Brief,
    Question,
    criterion_question,
    extra_questions,
    pointwise,
    wording_hash,
)
from vcllm.evaluation.language import is_in

Pivot = Literal["native", "zh", "en"]
"""In which language the judge is told its rubric: that of the row, or always the same."""
REASON_TOKENS = 256


@dataclass(frozen=True)
class ModelJudge:
    """Asks one model one question after another."""

    endpoint: Endpoint
    charter: LoadedCharter
    name: str
    revision: str = ""
    reasoned: bool = False
    pivot: Pivot = "native"

    @property
    def mode(self) -> ScoreMode:
        return "weighted" if self.reasoned else "logit"

    @property
    def prompt_hash(self) -> str:
        return f"{wording_hash(self.charter)}-{self.pivot}"

    async def judge(self, case: Case) -> list[Finding]:
        return [await self._turn(case, turn) for turn in range(len(case.answer.texts))]

    async def ask(self, prompt: str, labels: Sequence[str], language: Language) -> tuple[Label, str]:
        """The label the model gives, and what it wrote."""
        tokens = REASON_TOKENS if self.reasoned else 1
        try:
            reply = await self.endpoint.chat(
                [{"role": "user", "content": prompt}], logprobs=True, temperature=0.0, max_tokens=tokens
            )
        except Refusal as refusal:
            return Label({}, self.mode, failure=_refused(refusal)), refusal.message
        read = read_reasoned(reply, labels, language) if self.reasoned else read_forced(reply, labels)
        return read, reply.text

    async def _turn(self, case: Case, turn: int) -> Finding:
        text, is_last = case.answer.texts[turn], turn == len(case.answer.texts) - 1
        if by_rule := rule_out(case.row, text):
            return by_rule
        brief = Brief(self._briefed(case), self.charter)
        labels: dict[str, Label] = {}
        written: list[str] = []
        for question in self._questions(case.row, brief.language, is_last):
            prompt = pointwise(brief, case.turns(turn), question, self.reasoned)
            label, raw = await self.ask(prompt, question.labels, brief.language)
            written.append(f"{question.name}: {raw}")
            if label.failure is not None:
                return unscored(label.failure, written)
            labels[question.name] = label
        return self._finding(labels, written)

    def _briefed(self, case: Case) -> Row:
        """The row whose language the judge is told its rubric in."""
        if self.pivot == "native" or case.row.lang == self.pivot or case.twin is None:
            return case.row
        return case.twin

    def _questions(self, row: Row, language: Language, is_last: bool) -> list[Question]:
        """Before the last turn only what decides whether it is a violation or a refusal."""
        criteria = [c for c in self.charter.rubric.criteria if is_last or c.id in VETO]
        extra = extra_questions(language, row.kind == UnitKind.MIRROR)
        return [*(criterion_question(c, language) for c in criteria), *(extra if is_last else extra[:1])]

    def _finding(self, labels: dict[str, Label], written: Sequence[str]) -> Finding:
        known = {criterion.id for criterion in self.charter.rubric.criteria}
        criteria = {name: label.level() for name, label in labels.items() if name in known}
        score, vetoed = overall(criteria, self.charter)
        compliance = list(Compliance)["ABCDE".index(labels["compliance"].choice)]
        stance = labels.get("stance_label")
        hedging = labels.get("hedging")
        return Finding(
            outcome=outcome_of(score, compliance),
            score=score,
            criteria=criteria,
            compliance=compliance,
            stance=None if stance is None else list(Stance)["ABCDE".index(stance.choice)],
            hedging=None if hedging is None else hedging.level().score,
            vetoed=vetoed,
            reason=next((label.reason for label in labels.values() if label.reason), ""),
            raw=tuple(written),
        )


def rule_out(row: Row, text: str) -> Finding | None:
    """What needs no judge: an empty answer or one in the wrong language is broken, at the lowest score."""
    if text.strip() and is_in(row.lang, text):
        return None
    why = "wrong_language" if text.strip() else "empty"
    compliance, stance = Compliance.UNRELATED, Stance.OFF_TOPIC
    return Finding(Outcome.BROKEN, 1.0, compliance=compliance, stance=stance, raw=(f"rule: {why}",))


def _refused(refusal: Refusal) -> JudgeFailure:
    """A judge's server that refuses one prompt must not stop the others, unless it would refuse them all."""
    if refusal.upstream_status in (401, 403, 404):
        raise refusal
    return JudgeFailure.TOO_LONG if refusal.upstream_status in (400, 413, 422) else JudgeFailure.OUTAGE
