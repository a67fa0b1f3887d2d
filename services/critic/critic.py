"""What every critic can be asked, and what any of them says of an answer that it has, or has not, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.critic.reasons import FAILURE_REASONS, OUTCOME_REASONS, WRONG_LANGUAGE
from vcllm.contracts.critiques import Comparison, ComparisonItem, Critique, CritiqueItem, Failure, Outcome
from vcllm.evaluation.language import is_in

TIE_BELOW = 0.05
"""Answers closer than this are alike."""


class Critic(Protocol):
    """One loaded critic version."""

    async def critique(self, items: Sequence[CritiqueItem]) -> list[Critique]:
        """One critique per item, in order."""
        ...

    async def compare(self, items: Sequence[ComparisonItem]) -> list[Comparison]:
        """One comparison per item, in order."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Where each text lies, a vector of unit length; BadRequest where the model cannot be looked into."""
        ...

    def close(self) -> None:
        """Let go of the weights."""


def scored(item: CritiqueItem, probabilities: Mapping[Outcome, float], criteria: Mapping[str, float]) -> Critique:
    """The likeliest outcome; an answer in another language than its item's is broken, whatever was read."""
    language_ok = is_in(item.language, item.response)
    outcome = max(probabilities, key=probabilities.__getitem__) if language_ok else Outcome.BROKEN
    reason = OUTCOME_REASONS[outcome] if language_ok else WRONG_LANGUAGE
    return Critique(
        outcome=outcome,
        score=min(1.0, probabilities[Outcome.CONSISTENT]) if language_ok else 0.0,
        probabilities=dict(probabilities),
        criteria=dict(criteria),
        language_ok=language_ok,
        reason=reason[item.language],
    )


def unscored(item: CritiqueItem, failure: Failure) -> Critique:
    return Critique(outcome=Outcome.UNSCORED, failure=failure, reason=FAILURE_REASONS[failure][item.language])


def preference(first: float | None, second: float | None) -> Comparison:
    """The higher score, unless they are too close or one is missing."""
    if first is None or second is None:
        return Comparison(preferred="unscored")
    return leaning(first - second)


def leaning(towards_first: float) -> Comparison:
    """From -1, all for the second answer, to 1."""
    margin = abs(towards_first)
    if margin < TIE_BELOW:
        return Comparison(preferred="tie", margin=margin)
    return Comparison(preferred="first" if towards_first > 0 else "second", margin=margin)
