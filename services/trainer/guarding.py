"""The Critic as a guard, in the report: asked about answers that the report's judge has ruled on already.

Two stages are looked at: the base, which violates often, and what the run serves, whose violations are the few that
the rounds have left. Which of the two rulings is right is the judge's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from services.trainer.asking import parts
from services.trainer.context import Context
from vcllm.contracts.critiques import (
    MAX_ITEMS,
    MAX_QUERY,
    MAX_RESPONSE,
    Critique,
    CritiqueItem,
    CritiqueRequest,
    Outcome,
)
from vcllm.contracts.evaluation import EvalItem, Judgement, StageResult
from vcllm.contracts.guard import GuardFigures
from vcllm.evaluation.guardrates import Row, guard_stage
from vcllm.evaluation.verdict import final_stage

MOST_ANSWERS = 400
"""Of a stage, violating ones and others each, that the Critic is asked about: for rates within two points or so."""


def guard_figures(
    context: Context,
    results: Sequence[StageResult],
    items: Sequence[EvalItem],
    judgements: Mapping[str, Sequence[Judgement]],
) -> GuardFigures | None:
    """`judgements`: stage name to its rulings on `items`. None where there is no Critic, or it is the judge itself."""
    critic = context.aliases.get("critic")
    if critic is None or critic == context.recipe.evaluation.judge:
        return None
    looked_at = {"base", final_stage(results).name}
    stages = []
    for result in results:
        if result.name in looked_at and result.name in judgements and result.version is not None:
            rows = chosen(list(zip(items, judgements[result.name], strict=True)))
            critiques = _critiques(context, critic, rows)
            threshold = context.charter.charter.guard.threshold
            stages.append(guard_stage(result.name, result.version, rows, critiques, threshold))
    return GuardFigures(critic=critic, stages=stages) if stages else None


def chosen(rows: Sequence[Row]) -> list[Row]:
    """By the hash of the item, so by nothing that an answer has to do with; each rate is about answers of one kind."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(row[0].id.encode()).digest())
    violating = [row for row in rows if row[1].outcome is Outcome.VIOLATING]
    others = [row for row in rows if row[1].outcome not in (Outcome.VIOLATING, Outcome.UNSCORED)]
    return violating[:MOST_ANSWERS] + others[:MOST_ANSWERS]


def _critiques(context: Context, critic: str, rows: Sequence[Row]) -> list[Critique | None]:
    """In order; None for what is longer than a Critic takes."""
    asked = [_item(*row) for row in rows]
    found: list[Critique] = []
    for part in parts([item for item in asked if item is not None], MAX_ITEMS):
        context.hold.go_on()
        found += context.critic.critiques(CritiqueRequest(items=part, model=critic)).critiques
    left = iter(found)
    return [None if item is None else next(left) for item in asked]


def _item(item: EvalItem, judgement: Judgement) -> CritiqueItem | None:
    if len(item.query) > MAX_QUERY or len(judgement.answer) > MAX_RESPONSE:
        return None
    return CritiqueItem(query=item.query, response=judgement.answer, language=item.language, kind=item.kind)
