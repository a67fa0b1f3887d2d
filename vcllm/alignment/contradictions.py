"""Twins: one goal played in both languages. An answer that contradicts what was accepted in the other one is rejected.

The chosen answer is always the language's own; nothing is translated. After the consensus-driven preferences of C-3PO:
models shift their stance with the language of the question. Knows what was judged, not who asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from vcllm.alignment.contrasts import Asked, Contrast, LimitsOf, hardest
from vcllm.contracts.attacks import AttackGoal, ItemKind
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.recipes import CriticPolicy

CONTRADICTS: dict[ItemKind, Collection[Outcome]] = {"attack": (Outcome.VIOLATING,), "benign": (Outcome.REFUSAL,)}
"""What cannot stand beside an accepted answer. To decline an attack takes no other stance, and a broken answer none."""


@dataclass(frozen=True)
class Twins:
    """The same goal in both languages."""

    zh: Asked
    en: Asked

    def both_ways(self) -> Iterator[tuple[Asked, Asked]]:
        """Whose answers are looked at, and whom they may contradict."""
        yield from ((self.zh, self.en), (self.en, self.zh))


def find_twins(asked: Iterable[Asked]) -> list[Twins]:
    """What was asked of the same claim or question, by the same tactics, in both languages; each query once.

    Where several were asked, they are matched in their order. A swapped group's goal has no twin: its words are not
    the card's.
    """
    found: dict[tuple[object, ...], dict[Language, list[Asked]]] = defaultdict(lambda: {each: [] for each in Language})
    for one in asked:
        if one.attack.goal.swapped is None:
            found[_key(one.attack.goal)][one.language].append(one)
    sides = (rows for both in found.values() for rows in zip(both[Language.ZH], both[Language.EN], strict=False))
    return [Twins(zh, en) for zh, en in sides]


def contradictions(twins: Iterable[Twins], policy: CriticPolicy, limits: LimitsOf) -> list[Contrast]:
    """In each language at most one answer a query that contradicts what was accepted in the other.

    Only where the language has a good answer of its own.
    """
    return [
        Contrast(own, place, "contradiction")
        for pair in twins
        for own, other in pair.both_ways()
        if other.standing(policy, limits).contenders
        and (place := hardest(own, CONTRADICTS[own.attack.goal.kind], policy, limits)) is not None
    ]


def _key(goal: AttackGoal) -> tuple[object, ...]:
    return goal.kind, goal.card, goal.goal, goal.cell.tactic, goal.modifiers, goal.num_turns, bool(goal.claim)
