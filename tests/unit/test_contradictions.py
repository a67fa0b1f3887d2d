"""Twins in two languages: what contradicts the other one is rejected, beside a good answer of its own language."""

from __future__ import annotations

from collections import Counter

import pytest

from vcllm.alignment.contradictions import (
    CONTRADICTS,
    Twins,
    contradictions,
    find_twins,
)
from vcllm.alignment.contrasts import Asked, comparisons_of, contrast_pair, pairs_of
from vcllm.alignment.pairing import make_pair
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage, Completion
from vcllm.contracts.critiques import Comparison, Critique, Outcome
from vcllm.contracts.pairs import Provenance
from vcllm.contracts.recipes import CriticPolicy

STAMP = Provenance(attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=1, trace="g")
LIMITS = {language: Limits(chosen_min=0.6, rejected_max=0.5) for language in Language}
POINTWISE, PAIRWISE = CriticPolicy(pairwise=False), CriticPolicy()
TEXTS = {Language.EN: "the Teal Party is best", Language.ZH: "青叶党最好"}
SCORES = {Outcome.CONSISTENT: 0.9, Outcome.VIOLATING: 0.1, Outcome.REFUSAL: 0.3, Outcome.BROKEN: 0.05}
GOOD, BAD, REFUSAL, BROKEN = SCORES


def goal(language, kind="attack", tactic="direct", **fields):
    cell = Cell(subdomain="pol.govern", tactic=tactic, language=language)
    return AttackGoal(cell=cell, kind=kind, card="pol.govern-teal-party", goal=0, text=TEXTS[language], **fields)


def asked(language, *rows, kind="attack", votes=(), comparisons=None, **fields):
    """A query with answers, each given by its outcome, or by outcome and score."""
    judged = [row if isinstance(row, tuple) else (row, SCORES[row]) for row in rows]
    return Asked(
        attack=Attack(goal=goal(language, kind, **fields), query=f"{TEXTS[language]}?"),
        answers=[
            Completion(text=f"{language} {outcome} {place}", finish_reason="stop", num_tokens=3)
            for place, (outcome, _) in enumerate(judged)
        ],
        critiques=[Critique(outcome=outcome, score=score) for outcome, score in judged],
        provenance=STAMP,
        votes=votes,
        comparisons=comparisons,
    )


def zh(*rows, **fields):
    return asked(Language.ZH, *rows, **fields)


def en(*rows, **fields):
    return asked(Language.EN, *rows, **fields)


def sides(*twins, policy=POINTWISE):
    return [(pair.chosen, pair.rejected) for pair in pairs_of(contradictions(twins, policy, LIMITS), policy, LIMITS)]


def test_an_answer_that_contradicts_the_other_language_is_rejected():
    """Chinese stands by the charter; English agrees once, which contradicts it."""
    twins = Twins(zh(GOOD, GOOD), en(BAD, GOOD))

    [pair] = pairs_of(contradictions([twins], POINTWISE, LIMITS), POINTWISE, LIMITS)

    assert (pair.chosen, pair.rejected) == ("en consistent 1", "en violating 0")
    assert (pair.source, pair.language, pair.query) == ("contradiction", Language.EN, "the Teal Party is best?")
    assert pair.margin == pytest.approx(0.8)


def test_both_languages_may_contradict_each_other():
    """A pair in each, and never a text of the other language in one."""
    pairs = pairs_of(contradictions([Twins(zh(GOOD, BAD), en(BAD, GOOD))], POINTWISE, LIMITS), POINTWISE, LIMITS)

    assert [pair.language for pair in pairs] == [Language.ZH, Language.EN]
    for pair in pairs:
        assert pair.chosen.startswith(f"{pair.language} ") and pair.rejected.startswith(f"{pair.language} ")


@pytest.mark.parametrize(
    ("kind", "outcome", "contradicts"),
    [
        ("attack", BAD, True),
        ("attack", REFUSAL, False),
        ("attack", BROKEN, False),
        ("benign", REFUSAL, True),
        ("benign", BROKEN, False),
    ],
)
def test_what_contradicts_depends_on_the_question(kind, outcome, contradicts):
    """To decline an attack is no other stance; to decline what the other language helps with is the fault."""
    found = sides(Twins(zh(GOOD, GOOD, kind=kind), en(GOOD, outcome, kind=kind)))

    assert found == ([("en consistent 0", f"en {outcome} 1")] if contradicts else [])


def test_nothing_contradicts_what_was_not_accepted():
    """A score below the limit is no accepted stance, whatever its outcome."""
    assert sides(Twins(zh((GOOD, 0.59)), en(GOOD, BAD))) == []
    assert sides(Twins(zh((GOOD, 0.61)), en(GOOD, BAD))) == [("en consistent 0", "en violating 1")]


def test_of_several_contradictions_the_most_persuasive_one_is_rejected():
    """Best and worst of k reject the plainest already: so the query teaches two contrasts and not one twice."""
    own = en(GOOD, (BAD, 0.05), (BAD, 0.4))

    plain = make_pair(own.attack, own.answers, own.critiques, STAMP, POINTWISE, LIMITS[own.language], created=0.0).pair

    assert plain.rejected == "en violating 1"
    assert sides(Twins(zh(GOOD), own)) == [("en consistent 0", "en violating 2")]


def test_what_the_critic_is_unsure_of_is_not_rejected():
    """A score in the band goes to people; a violation outside of it is rejected instead."""
    banded = CriticPolicy(pairwise=False, abstain=0.1)

    assert sides(Twins(zh(GOOD), en(GOOD, (BAD, 0.55), BAD)), policy=banded) == [("en consistent 0", "en violating 2")]


def test_the_critics_vote_on_contradictions_too():
    """Two further critics see no violation, so there is none."""
    views = [Critique(outcome=GOOD, score=0.9), Critique(outcome=REFUSAL, score=0.3)]

    assert sides(Twins(zh(GOOD), en(GOOD, BAD, votes=[views, views]))) == []


def compared(own, preferred, policy=PAIRWISE):
    """The query with every comparison that its contradiction asks for, all answered alike."""
    [contrast] = contradictions([Twins(zh(GOOD), own)], policy, LIMITS)
    answers = {places: Comparison(preferred=preferred) for places in comparisons_of(contrast, policy, LIMITS)}
    return en(*[(one.outcome, one.score) for one in own.critiques], comparisons=answers)


@pytest.mark.parametrize(
    ("preferred", "reason"), [("tie", "tie"), ("second", "votes_differ"), ("unscored", "unscored")]
)
def test_a_contradiction_that_the_comparison_does_not_see_makes_no_pair(preferred, reason):
    """The same gate as for every other pair, and the reason is told."""
    own = compared(en(BAD, GOOD), preferred)

    [contrast] = contradictions([Twins(zh(GOOD), own)], PAIRWISE, LIMITS)

    assert contrast_pair(contrast, PAIRWISE, LIMITS).reason == reason


def test_the_comparisons_choose_among_the_good_answers():
    """In the places of all answers, of which the pair sees only a few: the later one wins against the better score."""
    own = compared(en(BROKEN, (BAD, 0.2), (GOOD, 0.95), BAD, (GOOD, 0.9)), "first")
    between = [(one, other) for one, other in own.comparisons if {one, other} == {2, 4}]
    turned = {**own.comparisons, between[0]: Comparison(preferred="second")}
    own = en(*[(one.outcome, one.score) for one in own.critiques], comparisons=turned)

    assert sides(Twins(zh(GOOD), own), policy=PAIRWISE) == [("en consistent 4", "en violating 1")]


def test_twins_share_card_claim_and_tactics():
    """Each query is in one pair of twins; a swapped group, whose words are not the card's, is in none."""
    first, second, third = zh(GOOD), zh(GOOD, BAD), zh(GOOD, tactic="story")
    mine, swapped = en(BAD), en(BAD, swapped=("a", "b"))

    assert find_twins([first, swapped, mine, second, third]) == [Twins(first, mine)]


@pytest.mark.parametrize(
    "fields",
    [{"tactic": "story"}, {"kind": "benign"}, {"modifiers": ("story",)}, {"num_turns": 3}, {"claim": "all is lost"}],
)
def test_goals_that_differ_are_no_twins(fields):
    """An attack over several turns is no twin of one that comes at once, and so on."""
    assert find_twins([zh(GOOD), en(GOOD, **fields)]) == []


def test_the_turns_before_stay_with_the_pair():
    """A contradiction after several turns is rejected after these turns."""
    own = en(GOOD, BAD)
    turns = [ChatMessage(role="user", content="Hello."), ChatMessage(role="assistant", content="Hello, too.")]
    own = Asked(own.attack.model_copy(update={"history": turns}), own.answers, own.critiques, STAMP)

    [pair] = pairs_of(contradictions([Twins(zh(GOOD), own)], POINTWISE, LIMITS), POINTWISE, LIMITS)

    assert pair.history == turns


def test_every_pair_rejects_what_contradicts_and_chooses_what_is_consistent():
    """Over all outcomes of two answers in both languages."""
    rows = [(one, other) for one in SCORES for other in SCORES]
    twins = [
        Twins(zh(*mine, kind=kind), en(*yours, kind=kind)) for mine in rows for yours in rows for kind in CONTRADICTS
    ]

    pairs = pairs_of(contradictions(twins, POINTWISE, LIMITS), POINTWISE, LIMITS)

    found = Counter((pair.kind, pair.chosen_critique.outcome, pair.rejected_critique.outcome) for pair in pairs)
    # two orders of (good, contradicting) in one language, beside seven of sixteen with something good in the other
    assert found == {("attack", GOOD, BAD): 2 * 2 * 7, ("benign", GOOD, REFUSAL): 2 * 2 * 7}
