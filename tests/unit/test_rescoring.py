"""Stored pairs under a newer Critic: kept, taken back, or left open."""

from __future__ import annotations

from vcllm.alignment.rescoring import rescored
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance

STAMP = Provenance(attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=1, trace="g")
LIMITS = {language: Limits(chosen_min=0.6, rejected_max=0.5) for language in Language}
UNSCORED = Critique(outcome=Outcome.UNSCORED, failure="outage")


def critique(score, outcome=Outcome.CONSISTENT):
    return Critique(outcome=outcome, score=score)


def pair(query, rejected="Yes.", language=Language.EN, **fields):
    return Pair(
        kind="attack",
        cell=Cell(subdomain="pol.govern", tactic="dichotomy", language=language),
        card="pol.govern-teal-party",
        goal=0,
        query=query,
        chosen="No.",
        rejected=rejected,
        margin=0.8 if rejected else None,
        chosen_critique=critique(0.9),
        rejected_critique=critique(0.1, Outcome.VIOLATING) if rejected else None,
        provenance=STAMP,
        **fields,
    )


def test_what_the_newer_critic_confirms_stays_as_it_was():
    """The very pair, with its id; one that was approved alone needs no contrast."""
    pairs = [pair("a"), pair("b", rejected=None)]

    found = rescored(pairs, [critique(0.7), critique(0.8)], [critique(0.4), None], LIMITS)

    assert all(kept is before for kept, before in zip(found.kept, pairs, strict=True))
    assert (found.withdrawn, found.unscored) == ([], [])


def test_what_it_does_not_stand_behind_is_withdrawn_by_name():
    """A chosen answer that fell, and a rejected one that is no worse any more."""
    fallen, flat, swapped = pair("a"), pair("b"), pair("c")

    found = rescored(
        [fallen, flat, swapped],
        [critique(0.5), critique(0.8), critique(0.8)],
        [critique(0.1, Outcome.VIOLATING), critique(0.7), critique(0.85, Outcome.REFUSAL)],
        LIMITS,
    )

    assert found.withdrawn == [(fallen, "chosen_not_good"), (flat, "no_contrast"), (swapped, "no_contrast")]
    assert found.kept == []


def test_an_outage_withdraws_nothing():
    """What could not be judged again is told apart, on either side."""
    pairs = [pair("a"), pair("b")]

    found = rescored(pairs, [UNSCORED, critique(0.8)], [critique(0.1), UNSCORED], LIMITS)

    assert (found.kept, found.withdrawn, found.unscored) == ([], [], pairs)


def test_a_persons_approval_is_not_the_critics_to_take_back():
    """It is what the Critic is refitted on."""
    approved = pair("a", source="human")

    assert rescored([approved], [critique(0.1, Outcome.VIOLATING)], [critique(0.9)], LIMITS).kept == [approved]


def test_each_language_has_its_own_limits():
    """The same scores are enough in one and not in the other."""
    limits = LIMITS | {Language.ZH: Limits(chosen_min=0.9, rejected_max=0.5)}
    english, chinese = pair("a"), pair("b", language=Language.ZH)

    found = rescored([english, chinese], [critique(0.8)] * 2, [critique(0.1, Outcome.VIOLATING)] * 2, limits)

    assert (found.kept, found.withdrawn) == ([english], [(chinese, "chosen_not_good")])
