"""Pairs that quote the evaluation do not reach training: a model that was shown the questions is not measured by them.

An adapter between pairs and `vcllm.data.contamination`, which knows texts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vcllm.contracts.evaluation import EvalItem
from vcllm.contracts.pairs import Pair
from vcllm.data.contamination import Contamination
from vcllm.evaluation.bench.load import held_out_questions


@dataclass
class Blocked:
    """What may be learned, and what may not."""

    kept: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """`contaminated` to a number."""
    items: Counter[str] = field(default_factory=Counter)
    """Id of the quoted item to the number of pairs that quote it."""


class Blocker:
    """Pairs held against what is evaluated; the index is built once, by the caller."""

    def __init__(self, evaluated: Contamination) -> None:
        self.evaluated = evaluated

    def fault(self, pair: Pair) -> str | None:
        """Id of an evaluation item that the conversation or the chosen answer quotes; None for a clean pair.

        A rejected answer is unlearned, and may say what it likes.
        """
        return self.evaluated.find([*(turn.content for turn in pair.history), pair.query, pair.chosen])

    def sift(self, pairs: Iterable[Pair]) -> Blocked:
        """Order is kept."""
        result = Blocked()
        for pair in pairs:
            item = self.fault(pair)
            if item is None:
                result.kept.append(pair)
            else:
                result.dropped["contaminated"] += 1
                result.items[item] += 1
        return result


def kept_from_rounds(asked: Iterable[EvalItem]) -> Contamination:
    """The questions of this run's evaluation and of VC-Bench, as no pair may quote them.

    Without the suite `seen`: seed tactics on training cards are what it shows by design, and what rounds are played
    with. (Of 1,000 queries the starter makes for its rounds 6 % quote that suite, and 0.3 % any other item.)
    """
    items = ((item.id, item.query) for item in asked if item.suite != "seen")
    return Contamination([*items, *held_out_questions()])
