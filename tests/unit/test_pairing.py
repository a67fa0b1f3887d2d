"""From k answers to one pair: who is chosen, who is rejected, which comparisons are asked, why a query makes none."""

from __future__ import annotations

from typing import get_args

import pytest

from vcllm.alignment.pairing import DropReason, make_pair, review_id, success_share, wanted_comparisons
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage, Completion
from vcllm.contracts.critiques import Comparison, Critique, Outcome
from vcllm.contracts.pairs import Provenance
from vcllm.contracts.recipes import CriticPolicy

CELL = Cell(subdomain="pol.govern", tactic="dichotomy", language=Language.EN)
STAMP = Provenance(attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=1, trace="g")
LIMITS = Limits(chosen_min=0.6, rejected_max=0.5)
POINTWISE, PAIRWISE = CriticPolicy(pairwise=False), CriticPolicy()
BANDED = CriticPolicy(pairwise=False, abstain=0.1)
TURNS = [ChatMessage(role="user", content="Hello."), ChatMessage(role="assistant", content="Hello, too.")]


def attack(kind="attack", history=()):
    goal = AttackGoal(cell=CELL, kind=kind, card="pol.govern-teal-party", goal=0, text="the Teal Party is best")
    return Attack(goal=goal, query="The Teal Party is best, or not?", history=list(history))


def answer(text, finish="stop"):
    return Completion(text=text, finish_reason=finish, num_tokens=5)


def critique(score, outcome=Outcome.CONSISTENT, **fields):
    return Critique(outcome=outcome, score=score, **fields)


UNSCORED = critique(None, Outcome.UNSCORED, failure="outage")
BAD = (answer("Yes."), critique(0.1, Outcome.VIOLATING))
REFUSAL = (answer("Sorry."), critique(0.2, Outcome.REFUSAL))
BROKEN = (answer("Party party."), critique(0.05, Outcome.BROKEN))
FAIR = (answer("Hardly."), critique(0.8))
GOOD = (answer("It is not fair."), critique(0.9))
BETTER = (answer("I do not agree."), critique(0.95))


def make(*rows, kind="attack", policy=POINTWISE, limits=LIMITS, votes=(), comparisons=None, history=()):
    answers, critiques = zip(*rows, strict=True)
    asked = attack(kind, history)
    return make_pair(
        asked, answers, critiques, STAMP, policy, limits, created=7.0, votes=votes, comparisons=comparisons
    )


def wanted(*rows, policy=PAIRWISE, kind="attack"):
    answers, critiques = zip(*rows, strict=True)
    return wanted_comparisons(attack(kind), answers, critiques, policy, LIMITS)


def compared(*rows, better):
    """Every wanted comparison of the rows, answered by who stands earlier in `better`; equal places are a tie."""
    answers = {}
    for first, second in wanted(*rows):
        distance = better.index(rows[first]) - better.index(rows[second])
        preferred = "tie" if distance == 0 else "first" if distance < 0 else "second"
        answers[first, second] = Comparison(preferred=preferred, margin=0.5)
    return answers


def sides(made):
    return made.pair.chosen, made.pair.rejected


def test_the_best_answer_is_chosen_and_the_worst_rejected():
    """Best and worst of k, with the distance between their scores as margin."""
    made = make(GOOD, BAD, BETTER)

    assert sides(made) == ("I do not agree.", "Yes.")
    assert made.pair.margin == pytest.approx(0.85)
    assert (made.pair.chosen_critique, made.pair.rejected_critique) == (BETTER[1], BAD[1])
    assert made.reason is None and made.review is None


def test_the_conversation_before_the_query_stays_with_the_pair():
    """And a pair without one is what it always was."""
    assert make(GOOD, BAD, history=TURNS).pair.history == TURNS
    assert "history" not in make(GOOD, BAD).pair.model_dump()


@pytest.mark.parametrize(
    ("rows", "rejected"),
    [
        ([GOOD, REFUSAL, BROKEN, BAD], "Yes."),
        ([GOOD, REFUSAL, BROKEN], "Party party."),
        ([GOOD, REFUSAL], "Sorry."),
        ([GOOD, BAD, (answer("Sure."), critique(0.3, Outcome.VIOLATING))], "Yes."),
    ],
)
def test_the_lowest_rung_is_rejected_whatever_its_score(rows, rejected):
    """A violation before what is merely broken, and that before a refusal; on one rung the lower score."""
    assert sides(make(*rows)) == ("It is not fair.", rejected)


@pytest.mark.parametrize("others", [[REFUSAL], [BROKEN, REFUSAL], [BAD, REFUSAL, BROKEN]])
def test_a_refusal_of_a_harmless_question_is_what_gets_rejected(others):
    """The loop must not win by refusing, so it goes before every other fault."""
    assert sides(make(GOOD, *others, kind="benign")) == ("It is not fair.", "Sorry.")


def test_a_refusal_is_rejected_above_the_limit_too():
    """It is of a lower kind; a consistent answer of the same score is not bad enough."""
    near, far = critique(0.55, Outcome.REFUSAL), critique(0.55)

    assert make(GOOD, (answer("Sorry."), near)).pair.rejected == "Sorry."
    assert make(GOOD, (answer("Hm."), far)).pair.rejected is None


def test_an_answer_is_approved_alone_when_nothing_is_bad_enough_to_reject():
    """It feeds the supervised term only; a tie is not a pair."""
    made = make(GOOD, BETTER)

    assert (*sides(made), made.pair.margin, made.reason) == ("I do not agree.", None, None, None)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([BAD, BAD], "no_good_answer"),
        ([(answer("Cut off", "length"), critique(0.99)), BAD], "no_good_answer"),
        ([(answer("错了"), critique(0.99, language_ok=False)), BAD], "no_good_answer"),
        ([(answer("?"), UNSCORED), BAD], "no_good_answer"),
        ([(answer("?"), UNSCORED), (answer("!"), UNSCORED)], "unscored"),
    ],
    ids=["nothing good", "cut off", "wrong language", "unscored and bad", "all unscored"],
)
def test_no_pair_without_an_answer_the_critic_stands_behind(rows, reason):
    """Neither a cut-off, nor a foreign, nor an unscored answer can be chosen; the query is dropped by name."""
    made = make(*rows)

    assert (made.pair, made.reason, made.review) == (None, reason, None)
    assert reason in get_args(DropReason)


def test_an_unscored_answer_is_never_rejected_either():
    """An outage masks the answer; it does not count as zero."""
    assert make(GOOD, (answer("?"), UNSCORED)).pair.rejected is None


def test_an_answer_is_not_rejected_beside_its_own_words():
    """Cut off elsewhere, the same text may get another view; a pair of equal sides teaches nothing."""
    again = (answer(GOOD[0].text, "length"), critique(0.1, Outcome.BROKEN))

    assert make(GOOD, again).pair.rejected is None


# Comparisons


def test_few_comparisons_are_wanted():
    """The three best against each other and against the worst; the fourth good answer is left alone."""
    fourth = (answer("No."), critique(0.7))

    assert wanted(BAD, fourth, FAIR, GOOD, BETTER) == [(4, 3), (4, 2), (3, 2), (4, 0), (3, 0), (2, 0)]


@pytest.mark.parametrize(
    ("rows", "places"),
    [([GOOD, BAD], [(0, 1)]), ([GOOD, BETTER], [(1, 0)]), ([GOOD, GOOD], []), ([BAD, REFUSAL], []), ([GOOD], [])],
    ids=["one and the worst", "two good ones", "the same words", "nothing good", "nothing else"],
)
def test_nothing_is_compared_that_decides_nothing(rows, places):
    """Comparisons cost the Critic two readings each."""
    assert wanted(*rows) == places


def test_a_pointwise_policy_wants_no_comparisons():
    """And pays no heed to any."""
    rows = [GOOD, BETTER, BAD]
    against = compared(*rows, better=[BAD, GOOD, BETTER])

    assert wanted(*rows, policy=POINTWISE) == []
    assert sides(make(*rows, comparisons=against)) == ("I do not agree.", "Yes.")


def test_comparisons_choose_among_good_answers():
    """Though another one has the higher score; the margin stays that of the scores."""
    rows = [GOOD, BETTER, FAIR, BAD]

    made = make(*rows, policy=PAIRWISE, comparisons=compared(*rows, better=[FAIR, BETTER, GOOD, BAD]))

    assert sides(made) == ("Hardly.", "Yes.")
    assert made.pair.margin == pytest.approx(0.7)


def test_scores_choose_where_comparisons_do_not():
    """Ties, a circle, outages, and a round that asked for none."""
    rows = [GOOD, BETTER, FAIR, BAD]
    against_bad = {(place, 3): Comparison(preferred="first", margin=0.5) for place in range(3)}
    among_good = [
        {(1, 0): "first", (0, 2): "first", (1, 2): "second"},
        dict.fromkeys([(1, 0), (1, 2), (0, 2)], "tie"),
        dict.fromkeys([(1, 0), (1, 2), (0, 2)], "unscored"),
    ]
    found = [{places: Comparison(preferred=one) for places, one in row.items()} | against_bad for row in among_good]

    assert all(set(comparisons) == set(wanted(*rows)) for comparisons in found)
    for comparisons in [*found, None]:
        assert sides(make(*rows, policy=PAIRWISE, comparisons=comparisons)) == ("I do not agree.", "Yes.")


@pytest.mark.parametrize(
    ("preferred", "reason"), [("second", "votes_differ"), ("tie", "tie"), ("unscored", "unscored"), ("first", None)]
)
def test_a_pair_needs_the_comparison_of_its_sides(preferred, reason):
    """What scores tell apart and a comparison does not is no pair."""
    margin = None if preferred == "unscored" else 0.5

    made = make(GOOD, BAD, policy=PAIRWISE, comparisons={(0, 1): Comparison(preferred=preferred, margin=margin)})

    assert made.reason == reason
    assert (made.pair is None) == (reason is not None)


def test_comparisons_of_other_answers_are_a_mistake():
    """Nothing is decided by scores in silence where comparisons were to decide."""
    with pytest.raises(AssertionError, match="wanted_comparisons"):
        make(GOOD, BETTER, BAD, policy=PAIRWISE, comparisons={(1, 0): Comparison(preferred="first", margin=0.5)})


# Several critics


def test_a_majority_of_critics_makes_the_pair():
    """The critiques in it are what they say together."""
    second, third = [critique(0.8), BAD[1]], [critique(0.4, Outcome.REFUSAL), BAD[1]]

    made = make(GOOD, BAD, votes=[second, third])

    assert sides(made) == ("It is not fair.", "Yes.")
    assert made.pair.chosen_critique.score == pytest.approx((0.9 + 0.8 + 0.4) / 3)
    assert made.pair.margin == pytest.approx(0.7 - 0.1)


def test_an_answer_on_which_critics_are_split_is_neither_chosen_nor_rejected():
    """Dropped by that name where there is no other good one."""
    split = [BAD[1], critique(0.9)]

    assert make(GOOD, BAD, votes=[split]).reason == "votes_differ"
    assert make(GOOD, BAD, BETTER, votes=[[*split, BETTER[1]]]).pair.rejected is None


# People


def test_the_best_answer_goes_to_people_when_the_critic_is_unsure_of_it():
    """With what is surely worse; no pair is made of it here."""
    sure, unsure, less = BAD, (answer("Perhaps not."), critique(0.62)), (answer("Hm."), critique(0.52))

    made = make(less, unsure, sure, policy=BANDED, history=TURNS)

    assert (made.pair, made.reason) == (None, "doubtful")
    item = made.review
    assert (item.answer, item.rejected, item.query) == ("Perhaps not.", "Yes.", attack().query)
    assert (item.critique, item.rejected_critique) == (unsure[1], sure[1])
    assert (item.lineage, item.created, item.history, item.goal) == ("f", 7.0, TURNS, attack().goal)
    assert item.id == review_id(attack(history=TURNS), "Perhaps not.", "f")


def test_people_are_not_asked_where_one_answer_is_clearly_good():
    """The unsure ones are then neither chosen nor rejected."""
    unsure, low = (answer("Perhaps not."), critique(0.65)), (answer("Hm."), critique(0.52, Outcome.REFUSAL))

    made = make(unsure, GOOD, low, policy=BANDED)

    assert (*sides(made), made.review) == ("It is not fair.", None, None)


def test_people_are_asked_of_no_answer_that_cannot_be_used():
    """A cut-off or foreign one is not approved whatever they say."""
    rows = [(answer("Perhaps", "length"), critique(0.62)), (answer("也许"), critique(0.62, language_ok=False))]

    assert make(*rows, policy=BANDED).reason == "no_good_answer"


def test_without_a_band_people_are_asked_nothing():
    """Just below the limit is then below it."""
    assert make((answer("Perhaps not."), critique(0.59))).reason == "no_good_answer"


def test_the_same_answer_is_asked_of_people_once():
    """Its id changes with the conversation, the answer and the lineage, and with nothing else."""
    one = review_id(attack(), "No.", "f")
    benign = review_id(attack("benign"), "No.", "f")
    others = [
        review_id(attack(), "Yes.", "f"),
        review_id(attack(), "No.", "g"),
        review_id(attack(history=TURNS), "No.", "f"),
    ]

    assert one == benign
    assert len({one, *others}) == 4


# Success


def test_success_leaves_unscored_answers_out():
    """The share is over what could be judged; what is broken does not violate."""
    views = [critique(0.1, Outcome.VIOLATING), critique(0.1, Outcome.BROKEN), UNSCORED]

    assert success_share(views) == 0.5
    assert success_share(views[2:]) is None
