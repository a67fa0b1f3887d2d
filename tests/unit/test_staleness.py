"""How many versions lie between answer and lesson, and which pairs that leaves."""

from __future__ import annotations

import pytest

from vcllm.alignment.staleness import fresh_enough, staleness
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.problems import BadRequest

ORDER = ["sft", "r1", "r3", "r4"]
"""The second candidate was rejected."""


def pair(actor: str, source: str = "on_policy") -> Pair:
    return Pair(
        kind="attack",
        cell=Cell(subdomain="pol.govern", tactic="dichotomy", language=Language.EN),
        card="card",
        goal=0,
        source=source,
        query=f"Asked of {actor}?",
        chosen="No.",
        chosen_critique=Critique(outcome=Outcome.CONSISTENT, score=0.9),
        provenance=Provenance(
            attacker="a", actor=actor, critic="c", charter="d", template="e", lineage="f", round=1, trace="g"
        ),
    )


@pytest.mark.parametrize(
    ("made_by", "now", "lag"), [("r3", "r3", 0), ("r1", "r3", 1), ("sft", "r4", 3), ("r4", "r1", 2)]
)
def test_staleness_counts_versions_either_way(made_by, now, lag):
    """After a rollback the version that answered lies ahead, and is as far off."""
    assert staleness(ORDER, made_by, now) == lag


def test_a_version_that_went_on_for_a_round_counts_once():
    """Its weights did not move."""
    assert staleness(["sft", "r1", "r1", "r3"], "sft", "r3") == 2


@pytest.mark.parametrize(("made_by", "now", "unknown"), [("r2", "r3", "r2"), ("sft", "r9", "r9")])
def test_an_unknown_version_is_refused_by_name(made_by, now, unknown):
    """Taken for the newest or the oldest it would pass, or fail, every bound."""
    with pytest.raises(BadRequest, match=f"'{unknown}'.*sft, r1, r3, r4"):
        staleness(ORDER, made_by, now)


@pytest.mark.parametrize(("most", "num_kept"), [(0, 1), (1, 2), (2, 3), (9, 4)])
def test_pairs_up_to_the_bound_are_kept_in_their_order(most, num_kept):
    """The bound itself still counts as fresh."""
    pairs = [pair(actor) for actor in reversed(ORDER)]

    assert fresh_enough(pairs, ORDER, "r4", most) == (pairs[:num_kept], pairs[num_kept:])


@pytest.mark.parametrize("source", ["human", "imported"])
def test_what_people_stand_behind_is_never_too_old(source):
    """A review may take several rounds, and imported answers are no version's."""
    theirs = pair("some model", source)

    assert fresh_enough([theirs], ORDER, "r4", 0) == ([theirs], [])
