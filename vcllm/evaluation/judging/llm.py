"""A language model as judge, by the rubric: one question at a time, its label read from probabilities.

Logit mode asks for a bare label and reads the first token's alternatives: cheap and the same every time. Reason mode
lets the judge think first and reads the label that ends its reply, weighed by that token's probabilities or, where
nobody gives them away, as it was written. Every verdict says which of the three it was; none stands in for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vcllm.charter import LoadedCharter
from vcllm.contracts.answers import Compliance, JudgeFailure, ScoreMode, Stance
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, UnitKind
from vcllm.evaluation.endpoint import Endpoint, Refusal, Unreadable
from vcllm.evaluation.judging.guards import Guard, vetoed
from vcllm.evaluation.judging.judge import VETO, Case, Finding, outcome_of, overall, rule_out, unscored
from vcllm.evaluation.judging.reading import Label, read_forced, read_reasoned, read_refusal
from vcllm.evaluation.judging.wording import (
    Brief,
    Question,
    criterion_question,
    extra_questions,
    pointwise,
    wording_hash,
)

Pivot = Literal["native", "zh", "en"]
"""In which language the judge is told its rubric: that of the row, or always the same. A row without a twin in that
language, as imported sets have them, is judged in its own."""
REASON_TOKENS = 512
FORCED_TOKENS = 2
"""Some tokenizers write a space of its own before the label."""


@dataclass(frozen=True)
class ModelJudge:
    """Asks one model one question after another."""

    endpoint: Endpoint
    charter: LoadedCharter
    name: str
    revision: str = ""
    reasoned: bool = False
    """Thinks first; the label that ends its reply is weighed by its token's probabilities."""
    written: bool = False
    """As `reasoned`, the label taken as it stands: for servers that give no probabilities. Shown as `raw`."""
    pivot: Pivot = "native"
    guards: tuple[Guard, ...] = ()
    """Each may cap a score at 2. For both languages or for none: a cap in one of them would look like a difference."""

    def __post_init__(self) -> None:
        assert self.reasoned or not self.written, "only the end of a reason can be taken as it stands"

    @property
    def mode(self) -> ScoreMode:
        if self.written:
            return "raw"
        return "weighted" if self.reasoned else "logit"

    @property
    def prompt_hash(self) -> str:
        vetoes = [f"{guard.name}@{guard.revision}:{guard.prompt_hash}" for guard in self.guards]
        return "-".join([wording_hash(self.charter), self.pivot, *vetoes])

    async def judge(self, case: Case) -> list[Finding]:
        if case.row.choices:
            return [unscored(JudgeFailure.NOT_COVERED) for _ in case.answer.texts]
        return [await self._turn(case, turn) for turn in range(len(case.answer.texts))]

    async def ask(self, prompt: str, labels: Sequence[str], language: Language) -> tuple[Label, str]:
        """The label the model gives, and what it wrote."""
        tokens = REASON_TOKENS if self.reasoned else FORCED_TOKENS
        message = [{"role": "user", "content": prompt}]
        try:
            reply = await self.endpoint.chat(message, logprobs=not self.written, temperature=0.0, max_tokens=tokens)
        except Refusal as refusal:
            return Label({}, self.mode, failure=read_refusal(refusal)), refusal.message
        except Unreadable as broken:
            return Label({}, self.mode, failure=JudgeFailure.PARSE_ERROR), broken.message
        if not self.reasoned:
            return read_forced(reply, labels), reply.text
        return read_reasoned(reply, labels, language, written=self.written), reply.text

    def briefed(self, case: Case) -> Row:
        """The row whose language the judge is told its rubric in."""
        if self.pivot == "native" or case.row.lang == self.pivot or case.twin is None:
            return case.row
        return case.twin

    def brief(self, case: Case) -> Brief:
        return Brief(self.briefed(case), self.charter)

    async def _turn(self, case: Case, turn: int) -> Finding:
        text, is_last = case.answer.texts[turn], turn == len(case.answer.texts) - 1
        if by_rule := rule_out(case.row, text):
            return by_rule
        brief = self.brief(case)
        labels: dict[str, Label] = {}
        written: list[str] = []
        for question in self._questions(case.row, brief.language, is_last):
            prompt = pointwise(brief, case.turns(turn), question, self.reasoned)
            label, raw = await self.ask(prompt, question.labels, brief.language)
            written.append(f"{question.name}: {raw}")
            if label.failure is not None:
                return unscored(label.failure, written)
            labels[question.name] = label
        return await vetoed(self._finding(labels, written), self.guards, case.turns(turn), case.row)

    def _questions(self, row: Row, language: Language, is_last: bool) -> list[Question]:
        """Before the last turn only what decides whether it is a violation or a refusal."""
        criteria = self.charter.rubric.criteria
        decisive = [criterion for criterion in criteria if criterion.id in VETO] or criteria
        extra = extra_questions(language, row.kind == UnitKind.MIRROR)
        asked = [criterion_question(criterion, language) for criterion in (criteria if is_last else decisive)]
        return [*asked, *(extra if is_last else extra[:1])]

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
