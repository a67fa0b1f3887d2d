"""Stored pairs under a newer Critic: which it still stands behind, and which it takes back.

Pure. Pairs are immutable: what stays is the very pair, with its id and the critiques it was approved by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vcllm.alignment.verdicts import Limits, is_good, is_scored, is_worse
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique
from vcllm.contracts.pairs import Pair

WithdrawnReason = Literal["chosen_not_good", "no_contrast"]
"""The newer Critic does not stand behind the chosen answer; or not over the rejected one."""


@dataclass
class Rescored:
    """Every pair in one of three places, in the order they came."""

    kept: list[Pair] = field(default_factory=list)
    withdrawn: list[tuple[Pair, WithdrawnReason]] = field(default_factory=list)
    unscored: list[Pair] = field(default_factory=list)
    """An answer could not be judged again, which says nothing against the pair: ask once more, or let it stand."""


def rescored(
    pairs: Sequence[Pair],
    critiques_of_chosen: Sequence[Critique],
    critiques_of_rejected: Sequence[Critique | None],
    limits: Mapping[Language, Limits],
) -> Rescored:
    """critiques_of_rejected: None where a pair has no rejected answer. What a person approved, no Critic takes back."""
    found = Rescored()
    for pair, chosen, rejected in zip(pairs, critiques_of_chosen, critiques_of_rejected, strict=True):
        assert (rejected is None) == (pair.rejected is None), "a critique for each rejected answer, and for no other"
        if pair.source == "human":
            found.kept.append(pair)
        elif not is_scored(chosen) or (rejected is not None and not is_scored(rejected)):
            found.unscored.append(pair)
        elif (reason := _withdrawn(pair, chosen, rejected, limits[pair.language])) is not None:
            found.withdrawn.append((pair, reason))
        else:
            found.kept.append(pair)
    return found


def _withdrawn(pair: Pair, chosen: Critique, rejected: Critique | None, limits: Limits) -> WithdrawnReason | None:
    if not is_good(chosen, limits):
        return "chosen_not_good"
    if rejected is not None and not is_worse(rejected, chosen, pair.kind, limits):
        return "no_contrast"
    return None
