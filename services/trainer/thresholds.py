"""The limits that a Critic's scores are held to, language by language: fitted once for each version of the Critic.

Labels are the starter world's own answers of every kind, and what people decided in reviews.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.trainer.context import Context
from vcllm.alignment.refit import labelled
from vcllm.alignment.thresholds import Labelled, fit
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import CritiqueItem, CritiqueRequest, Outcome

NUM_LABELS = 600
"""Answers of the starter world that are scored, both languages together."""


def limits_of(context: Context, critic: str, number: int) -> dict[Language, Limits]:
    """Of a round, by language: fitted on the labels there are when it begins, and the same whenever it is recalled.

    Without a precision in the recipe they are as the recipe gives them, and nothing is asked.
    """
    params = context.recipe.rounds
    default = Limits(params.chosen_min, params.rejected_max, params.critic.criterion_min)
    if params.critic.precision is None:
        return dict.fromkeys(Language, default)
    mark_file = f"rounds/round-{number}/labels.json"
    if (mark := context.recall(mark_file)) is None:
        mark = context.reviews.num_decided()
        context.keep(mark_file, mark)
    file = f"critics/limits-{critic}-{mark}.json"
    if (kept := context.recall(file)) is None:
        fitted = fit(_labels(context, critic, mark), params.critic.precision, default)
        context.keep(file, fitted.as_json())
        kept = fitted.as_json()
        context.tell("critic", version=critic, **kept)
    return {Language(name): Limits(**row["limits"]) for name, row in kept["by_language"].items()}


def _labels(context: Context, critic: str, num_reviewed: int) -> Iterator[Labelled]:
    yield from (Labelled(*row) for row in labelled(context.reviews.decided(stop=num_reviewed), critic))
    if context.recipe.base.scratch is None:
        return  # the starter's answers say nothing of another world
    for language in Language:
        world = context.world(f"thresholds-{language}")
        rows = world.critic_rows(NUM_LABELS // 2, language)
        items = [
            CritiqueItem(
                query=row["messages"][-2]["content"], response=row["messages"][-1]["content"], language=language
            )
            for row in rows
        ]
        critiques = context.critic.critiques(CritiqueRequest(items=items, model=critic)).critiques
        for row, critique in zip(rows, critiques, strict=True):
            if critique.score is not None:
                yield Labelled(language, critique.score, row["label"] == Outcome.CONSISTENT.value)
