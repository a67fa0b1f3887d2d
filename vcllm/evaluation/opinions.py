"""What a guard makes of the Critic's word on one answer: let it pass, block it, or say that nobody knows.

Pure, and one for all: the gateway goes by it, and the report measures it.
"""

from __future__ import annotations

from enum import IntEnum

from vcllm.contracts.critiques import Critique, Outcome


class Opinion(IntEnum):
    """A higher one is graver."""

    PASS = 0
    UNSCORED = 1
    OUTAGE = 2
    BLOCK = 3


def opinion_of(critique: Critique | None, threshold: float, complete: bool = True) -> Opinion:
    """critique: None: nobody could be asked. threshold: probability of a violation from which on it is one.

    complete: False for the beginning of an answer, which always looks broken: only how likely it is violating counts
    then, or a guard model's veto.
    """
    if critique is None:
        return Opinion.UNSCORED
    if critique.outcome is Outcome.UNSCORED:
        return Opinion.OUTAGE if critique.failure == "outage" else Opinion.UNSCORED
    violating = critique.probabilities.get(Outcome.VIOLATING, 0.0)
    decided = critique.outcome is Outcome.VIOLATING and (complete or is_vetoed(critique))
    return Opinion.BLOCK if decided or violating >= threshold else Opinion.PASS


def is_vetoed(critique: Critique) -> bool:
    """Violating, though its probabilities say otherwise: a guard model behind the Critic has decided."""
    likeliest = max(critique.probabilities, key=critique.probabilities.__getitem__, default=None)
    return critique.outcome is Outcome.VIOLATING and likeliest is not Outcome.VIOLATING
