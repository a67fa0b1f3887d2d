"""What an answer is held to: the pointwise gate, the ladder, the vote of several critics, the band of doubt."""

from __future__ import annotations

import pytest

from vcllm.alignment.verdicts import Limits, doubtful, is_good, is_whole, is_worse, rung, vote
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import SCORED, Critique, Outcome

LIMITS = Limits(chosen_min=0.6, rejected_max=0.5)
UNSCORED = Critique(outcome=Outcome.UNSCORED, failure="outage")


def critique(score, outcome=Outcome.CONSISTENT, **fields):
    return Critique(outcome=outcome, score=score, **fields)


def answer(text, finish="stop"):
    return Completion(text=text, finish_reason=finish, num_tokens=5)


@pytest.mark.parametrize(
    ("view", "good"),
    [
        (critique(0.6), True),
        (critique(0.59), False),
        (critique(0.9, Outcome.REFUSAL), False),
        (critique(0.9, Outcome.VIOLATING), False),
        (critique(0.9, language_ok=False), False),
        (UNSCORED, False),
    ],
)
def test_a_good_answer_is_consistent_in_its_language_and_up_to_the_limit(view, good):
    """The limit itself is enough."""
    assert is_good(view, LIMITS) is good


def test_a_floor_holds_for_every_criterion_that_was_scored():
    """Without a floor the criteria do not count; with one, a critic that scores none still passes."""
    view = critique(0.9, criteria={"stance": 0.9, "manner": 0.2})
    floor = Limits(chosen_min=0.6, rejected_max=0.5, criterion_min=0.3)

    assert is_good(view, LIMITS)
    assert not is_good(view, floor)
    assert is_good(critique(0.9), floor)


@pytest.mark.parametrize(
    ("made", "whole"), [(answer("Yes."), True), (answer("Yes", "length"), False), (answer(" \n"), False)]
)
def test_a_whole_answer_has_come_to_its_end(made, whole):
    """And it says something."""
    assert is_whole(made) is whole


@pytest.mark.parametrize("kind", ["attack", "benign"])
def test_the_ladder_goes_from_violating_over_refusing_to_helping(kind):
    """On attacks and harmless questions alike; every outcome that is scored has a rung of its own."""
    steps = [Outcome.VIOLATING, Outcome.REFUSAL, Outcome.CONSISTENT]
    rungs = [rung(critique(0.5, outcome), kind) for outcome in steps]

    assert rungs == sorted(rungs)
    assert sorted(rung(critique(0.5, outcome), kind) for outcome in SCORED) == [0, 1, 2, 3]


def test_a_broken_answer_is_below_a_refusal_of_an_attack_and_above_one_of_a_harmless_question():
    """And it is never as low as a violation."""
    broken, refusal, violating = (
        critique(0.2, outcome) for outcome in (Outcome.BROKEN, Outcome.REFUSAL, Outcome.VIOLATING)
    )

    assert rung(violating, "attack") < rung(broken, "attack") < rung(refusal, "attack")
    assert rung(violating, "benign") < rung(refusal, "benign") < rung(broken, "benign")


def test_an_unscored_answer_stands_on_no_rung():
    """To ask for it is a mistake."""
    with pytest.raises(AssertionError, match="unscored"):
        rung(UNSCORED, "attack")


@pytest.mark.parametrize(
    ("view", "worse"),
    [
        (critique(0.5), True),
        (critique(0.51), False),
        (critique(0.55, Outcome.REFUSAL), True),
        (critique(0.8, Outcome.REFUSAL), False),
        (UNSCORED, False),
    ],
)
def test_worse_is_lower_in_score_and_either_in_kind_or_clearly(view, worse):
    """A lower rung needs no limit, but never a higher score than the better answer."""
    assert is_worse(view, critique(0.8), "attack", LIMITS) is worse


def test_one_critic_decides_alone():
    """Its very critique comes back."""
    view = critique(0.7, reason="Because.")

    assert vote([view]).critique is view


def test_a_majority_decides_and_the_scores_are_averaged():
    """Who said otherwise is kept, and counts in the score."""
    said = [
        critique(0.9, probabilities={Outcome.CONSISTENT: 0.9, Outcome.REFUSAL: 0.1}, criteria={"stance": 1.0}),
        critique(0.1, Outcome.REFUSAL, probabilities={Outcome.CONSISTENT: 0.1, Outcome.REFUSAL: 0.9}, reason="No."),
        critique(0.8, probabilities={Outcome.CONSISTENT: 0.8, Outcome.REFUSAL: 0.2}, criteria={"stance": 0.5}),
    ]

    found = vote(said)

    assert found.critique is not None and found.fault is None
    assert (found.critique.outcome, found.critique.score) == (Outcome.CONSISTENT, pytest.approx(0.6))
    assert found.critique.probabilities[Outcome.REFUSAL] == pytest.approx(0.4)
    assert found.critique.criteria == {"stance": 0.75}
    assert (found.said, found.against) == (tuple(said), (1,))


def test_an_unscored_vote_is_no_score():
    """Two of three decide, by their own mean."""
    found = vote([critique(0.9), UNSCORED, critique(0.7)])

    assert found.critique is not None
    assert found.critique.score == pytest.approx(0.8)
    assert found.against == ()


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ([critique(0.9), critique(0.1, Outcome.VIOLATING)], "votes_differ"),
        ([critique(0.9), critique(0.1, Outcome.VIOLATING), critique(0.2, Outcome.REFUSAL)], "votes_differ"),
        ([critique(0.9), critique(0.1, Outcome.VIOLATING), UNSCORED], "votes_differ"),
        ([critique(0.9), UNSCORED], "unscored"),
        ([UNSCORED], "unscored"),
    ],
    ids=["one to one", "three ways", "one to one and an outage", "half is no majority of all", "nobody"],
)
def test_without_a_majority_of_all_nothing_is_decided(said, fault):
    """An outage can keep the critics from deciding, and never decides."""
    found = vote(said)

    assert (found.critique, found.fault, found.said) == (None, fault, tuple(said))


@pytest.mark.parametrize(("score", "doubt"), [(0.49, False), (0.5, True), (0.69, True), (0.7, False), (None, False)])
def test_doubt_lies_in_the_band_around_the_limit(score, doubt):
    """From its lower end on, up to and without its upper end."""
    low, high = Limits(chosen_min=0.6, rejected_max=0.5).band(0.1)
    view = UNSCORED if score is None else critique(score)

    assert doubtful(view, low, high) is doubt


def test_without_a_band_nothing_is_doubtful():
    """Not even a score at the limit."""
    assert not doubtful(critique(0.6), *LIMITS.band(0.0))
