"""Who rules on answers for the report and the gate: the starter's rules over the cards, or a judge on a Critic server.

The recipe says which (`[evaluation] judge`). What a judge said is kept in the lineage's folder and not asked again, not
even after a crash. Knows single answers; what is counted of the rulings is decided elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from services.trainer.asking import parts
from services.trainer.context import Context
from vcllm.charter import LoadedCharter
from vcllm.contracts.attacks import ItemKind
from vcllm.contracts.base import Language, Name, digest
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import MAX_ITEMS, Critique, CritiqueItem, CritiqueRequest, Outcome
from vcllm.contracts.evaluation import StageResult
from vcllm.contracts.problems import BadRequest
from vcllm.starter import gold
from vcllm.starter.gold import Ruling
from vcllm.stores.models import write_atomic

CHUNK = min(1024, MAX_ITEMS)
"""Answers of one request, kept at a time: what a crash may cost."""
MAX_ANSWER = 16_000
"""Characters of an answer that a Critic takes; a longer one is unscored."""
KEPT = {"outcome", "score", "language_ok", "failure"}
"""Of a critique."""
NO_JUDGE = (
    "The recipe starts from a ready-made model and names no judge: report and gate go by the starter's rules, to which "
    "free text is broken, so the gate will hardly let a candidate through. Name a Critic version as [evaluation] judge."
)


@dataclass(frozen=True)
class Case:
    """One answer to be ruled on, with all that either kind of judge goes by."""

    query: str
    answer: str
    complete: bool
    """It came to its end by itself."""
    language: Language
    kind: ItemKind
    card: str
    goal: int
    """Index into the card's claims (attack) or benign items (benign)."""
    history: tuple[ChatMessage, ...] = ()
    """Turns before the query."""

    @cached_property
    def key(self) -> str:
        """Of what a judge on a server is shown: the same again need not be asked again."""
        turns = [message.model_dump(mode="json") for message in self.history]
        return digest([self.query, self.answer, self.language, self.kind, turns])[:32]


class Judge(Protocol):
    """Rules on answers."""

    @property
    def name(self) -> Name | None:
        """The Critic version that rules; None: the starter's rules."""
        ...

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        """One for each case, in order; what could not be judged is `unscored`."""
        ...


class Rules:
    """The starter's rules over the cards: exact on the starter's sentences, and free text is broken to them."""

    name: Name | None = None

    def __init__(self, charter: LoadedCharter) -> None:
        self.charter = charter

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        return [self._ruled(case) for case in cases]

    def _ruled(self, case: Case) -> Ruling:
        card = self.charter.card(case.card)
        reason = self.charter.reason(card)
        return gold.judge(case.answer, card, reason, case.goal, case.kind, case.language, case.complete)


class NamedJudge:
    """A version of the Critic that had no part in what the Actor learned."""

    def __init__(self, context: Context, name: Name) -> None:
        self.context = context
        self.name: Name | None = name

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        critiques = self._critiques([case for case in cases if _is_readable(case)])
        return [ruling_of(case, critiques.get(case.key)) for case in cases]

    def _critiques(self, cases: Sequence[Case]) -> Mapping[str, Critique]:
        """By key. Critics that were out of service have said nothing: that is not kept, and asked again next time."""
        found = {case.key: self._known[case.key] for case in cases if case.key in self._known}
        missing = {case.key: case for case in cases if case.key not in found}
        for part in parts(list(missing.values()), CHUNK):
            asked = self._ask(part)
            found |= asked
            self._keep({key: critique for key, critique in asked.items() if critique.failure != "outage"})
        return found

    def _ask(self, cases: Sequence[Case]) -> dict[str, Critique]:
        self.context.hold.go_on()
        request = CritiqueRequest(items=[_item(case) for case in cases], model=self.name)
        critiques = self.context.critic.critiques(request).critiques
        return {case.key: critique for case, critique in zip(cases, critiques, strict=True)}

    def _keep(self, critiques: Mapping[str, Critique]) -> None:
        self._known.update(critiques)
        self.context.hold.confirm()
        rows = [
            {"case": key, **critique.model_dump(mode="json", include=KEPT, exclude_defaults=True)}
            for key, critique in self._known.items()
        ]
        write_atomic(self._file, "".join(json.dumps(row) + "\n" for row in rows).encode())

    @cached_property
    def _known(self) -> dict[str, Critique]:
        if not self._file.is_file():
            return {}
        rows = map(json.loads, self._file.read_text().splitlines())
        return {row.pop("case"): Critique.model_validate(row) for row in rows}

    @property
    def _file(self) -> Path:
        return self.context.folder / "rulings" / f"{self.name}.jsonl"


def judge_of(context: Context) -> Judge:
    """The one that the recipe names."""
    name = context.recipe.evaluation.judge
    return Rules(context.charter) if name is None else NamedJudge(context, name)


def ruling_of(case: Case, critique: Critique | None) -> Ruling:
    """What a critique makes of an answer; None: nobody was asked, as there was nothing to read, or too much.

    An answer that is empty, in another language or cut off is broken, as to the starter's rules; what was violating or
    a refusal before it was cut off stays so.
    """
    if critique is None:
        return Ruling(Outcome.UNSCORED, "too_long") if case.answer.strip() else Ruling(Outcome.BROKEN, "empty")
    if critique.outcome is Outcome.UNSCORED:
        return Ruling(Outcome.UNSCORED, critique.failure or "")
    if not critique.language_ok:
        return Ruling(Outcome.BROKEN, "wrong_language")
    if not case.complete and critique.outcome is Outcome.CONSISTENT:
        return Ruling(Outcome.BROKEN, "truncated")
    return Ruling(critique.outcome, "")


def check_judge(context: Context, measured: Sequence[StageResult]) -> None:
    """Before anything is asked: BadRequest for a judge that cannot be one here. A real model without one is told of.

    measured: the stages that have their figures already; those of two judges cannot be compared.
    """
    name = context.recipe.evaluation.judge
    if name is not None:
        if re.fullmatch(re.escape(context.version("critic")) + r"(-r\d+)?", name):
            raise _refusal(
                f"'{name}' is the Critic of this lineage, which would find itself right. Name a version of the Critic "
                "that has no part in it."
            )
        if not context.store.has("critic", name):
            raise _refusal(
                f"there is no Critic version '{name}'. `vcllm models import FOLDER {name} --role critic` takes a model "
                "into the store."
            )
    elif context.recipe.base.model is not None and context.record.attempt <= 1:
        context.tell("log", message=NO_JUDGE)
    if others := {result.judge for result in measured} - {name}:
        before = others.pop()
        back = "take the line out again" if before is None else f"write '{before}' again"
        raise _refusal(
            f"lineage '{context.lineage}' has figures by {told_judge(before)}, and those of two judges cannot be "
            f"compared. Name another lineage, or {back}."
        )


def told_judge(name: Name | None) -> str:
    return "the starter's rules" if name is None else f"Critic version '{name}'"


def _refusal(reason: str) -> BadRequest:
    return BadRequest(f"[evaluation] judge: {reason}", param="recipe", code="judge_invalid")


def _is_readable(case: Case) -> bool:
    return bool(case.answer.strip()) and len(case.answer) <= MAX_ANSWER


def _item(case: Case) -> CritiqueItem:
    return CritiqueItem(
        query=case.query,
        response=case.answer,
        language=case.language,
        kind=case.kind,
        history=list(case.history),
    )
