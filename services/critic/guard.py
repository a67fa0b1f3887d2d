"""A guard model as veto: what it finds unsafe is not consistent, whatever the critic says.

Guards such as Qwen3Guard or Llama Guard are language models whose chat template asks for a label of the last
answer. The label is not written but read, from the probabilities of the labels it could begin with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.critic.critic import Critic, unscored
from services.critic.judge import Turns
from services.critic.reasons import VETOED
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Comparison, ComparisonItem, Critique, CritiqueItem, Failure, Outcome
from vcllm.engine.protocol import Conversation, Engine

Opinion = float | Failure
"""Probability that an answer is unsafe, or why there is none."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the guard's answer begins with."""

    safe: tuple[str, ...]
    unsafe: tuple[str, ...]


class Guard:
    """One guard model; critics may share it."""

    def __init__(self, engine: Engine, labels: Labels, *, threshold: float, min_mass: float) -> None:
        """threshold: from which probability of the unsafe labels on it vetoes. min_mass: least probability of all
        labels together for which it counts as an opinion."""
        self.engine = engine
        self.labels = labels
        self.threshold = threshold
        self.min_mass = min_mass
        self._turns = Turns(engine)

    async def opinions(self, conversations: Sequence[Conversation]) -> list[Opinion]:
        """Of the last answer of each, in order."""
        return [self._opinion(scores) for scores in await self._turns.scores(conversations, self._options)]

    def vetoes(self, opinion: Opinion) -> bool:
        return not isinstance(opinion, str) and opinion >= self.threshold

    def close(self) -> None:
        self.engine.close()

    @property
    def _options(self) -> tuple[str, ...]:
        return (*self.labels.safe, *self.labels.unsafe)

    def _opinion(self, scores: list[float] | Failure) -> Opinion:
        if isinstance(scores, str):
            return scores
        shares = [math.exp(score) for score in scores]
        mass = sum(shares)
        # Also where it is not a number: what cannot be read is no opinion.
        return min(1.0, sum(shares[len(self.labels.safe) :]) / mass) if mass >= self.min_mass and mass else "off_scale"


class Guarded:
    """A critic with a guard behind it."""

    def __init__(self, critic: Critic, guard: Guard, give_guard_back: Callable[[], None] = lambda: None) -> None:
        self.critic = critic
        self.guard = guard
        self.give_guard_back = give_guard_back

    async def critique(self, items: Sequence[CritiqueItem]) -> list[Critique]:
        """One critique per item, in order; what the guard cannot read is unscored."""
        critiques = await self.critic.critique(items)
        scored = [i for i, critique in enumerate(critiques) if critique.score is not None]
        opinions = await self.guard.opinions([exchange(items[i], items[i].response) for i in scored])
        for i, opinion in zip(scored, opinions, strict=True):
            critiques[i] = self._critique(items[i], critiques[i], opinion)
        return critiques

    async def compare(self, items: Sequence[ComparisonItem]) -> list[Comparison]:
        """One comparison per item; a vetoed answer is never preferred to one that is not."""
        comparisons = await self.critic.compare(items)
        compared = [i for i, comparison in enumerate(comparisons) if comparison.margin is not None]
        both = [exchange(items[i], answer) for i in compared for answer in (items[i].first, items[i].second)]
        opinions = await self.guard.opinions(both)
        for place, i in enumerate(compared):
            comparisons[i] = self._comparison(comparisons[i], opinions[2 * place], opinions[2 * place + 1])
        return comparisons

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """By the critic's model: a guard has no part in it."""
        return await self.critic.embed(texts)

    def close(self) -> None:
        """The guard is not this critic's alone: whoever lent it closes it."""
        self.critic.close()
        self.give_guard_back()

    def _critique(self, item: CritiqueItem, critique: Critique, opinion: Opinion) -> Critique:
        if isinstance(opinion, str):
            return unscored(item, opinion)
        if not self.guard.vetoes(opinion):
            return critique
        changes: dict[str, object] = {"score": min(critique.score or 0.0, 1 - opinion)}
        if critique.outcome is Outcome.CONSISTENT:
            changes |= {"outcome": Outcome.VIOLATING, "reason": VETOED[item.language]}
        return critique.model_copy(update=changes)

    def _comparison(self, comparison: Comparison, first: Opinion, second: Opinion) -> Comparison:
        if isinstance(first, str) or isinstance(second, str):
            return Comparison(preferred="unscored")
        if self.guard.vetoes(first) == self.guard.vetoes(second):
            return comparison
        return Comparison(preferred="second" if self.guard.vetoes(first) else "first", margin=abs(first - second))


def exchange(item: CritiqueItem | ComparisonItem, answer: str) -> list[ChatMessage]:
    """The conversation that ends with the answer."""
    return [
        *item.history,
        ChatMessage(role="user", content=item.query),
        ChatMessage(role="assistant", content=answer),
    ]
