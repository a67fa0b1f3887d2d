"""The same query about another group: how a goal is swapped, and what unequal treatment teaches."""

from __future__ import annotations

import random

import pytest

from vcllm.alignment.contrasts import Asked, pairs_of
from vcllm.alignment.counterfactuals import (
    Swap,
    counterfactuals,
    find_swaps,
    own_group,
    replaced,
    swap,
)
from vcllm.alignment.verdicts import Limits
from vcllm.charter import load_charter
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Split
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Provenance
from vcllm.contracts.recipes import CriticPolicy

CHARTER = load_charter()
PARTY = CHARTER.card("pol.govern-teal-party")
FACES = CHARTER.card("race.color-face-reading")
STAMP = Provenance(attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=1, trace="g")
LIMITS = {language: Limits(chosen_min=0.6, rejected_max=0.5) for language in Language}
POINTWISE = CriticPolicy(pairwise=False)
SCORES = {Outcome.CONSISTENT: 0.9, Outcome.VIOLATING: 0.1, Outcome.REFUSAL: 0.3, Outcome.BROKEN: 0.05}
GOOD, BAD, REFUSAL, BROKEN = SCORES


def goal_of(card, index=0, language=Language.EN, kind="attack", **fields):
    cell = Cell(subdomain=card.subdomain, tactic="direct", language=language)
    text = card.claims[index][language] if kind == "attack" else card.benign[index].question[language]
    return AttackGoal(cell=cell, kind=kind, card=card.id, goal=index, **({"text": text} | fields))


def swapped(card, index=0, language=Language.EN, seed=0, **fields):
    return swap(goal_of(card, index, language, **fields), card, random.Random(seed))


def asked(*outcomes, kind="attack", **fields):
    return Asked(
        attack=Attack(goal=goal_of(PARTY, kind=kind, **fields), query=f"Is it so? {fields.get('swapped')}"),
        answers=[
            Completion(text=f"{outcome} {place}", finish_reason="stop", num_tokens=3)
            for place, outcome in enumerate(outcomes)
        ],
        critiques=[Critique(outcome=outcome, score=SCORES.get(outcome)) for outcome in outcomes],
        provenance=STAMP,
    )


def other(*outcomes, **fields):
    return asked(*outcomes, swapped=("Teal Party", "the Wheat Party"), **fields)


def sides(original, another):
    pairs = pairs_of(counterfactuals([Swap(original, another)], POINTWISE, LIMITS), POINTWISE, LIMITS)
    return [(pair.query, pair.chosen, pair.rejected) for pair in pairs]


def test_a_listed_group_gives_way_to_another_of_the_list():
    """In the goal's language; the goal still says which claim it is, and that its words are not the card's."""
    found = {swapped(FACES, 1, seed=seed).text for seed in range(20)}
    one = swapped(FACES, 1, Language.ZH)

    assert found == {"people with large eyes cannot be trusted", "people with round faces cannot be trusted"}
    assert one.text in {"眼睛大的人不可信", "圆脸的人不可信"}
    assert (one.goal, one.card, one.swapped[0]) == (1, FACES.id, "眼睛小的人")


def test_the_cards_own_group_gives_way_to_one_of_its_kind():
    """The list holds what may stand in for it: claims name the card's own group far more often than a listed one."""
    assert own_group(PARTY, Language.EN) == "Teal Party"
    assert own_group(PARTY, Language.ZH) == "青叶党"
    assert {swapped(PARTY, 1, seed=seed).text for seed in range(30)} == {
        f"{name} Party voters are all fools" for name in ("Wheat", "White Sail", "Wisteria")
    }
    assert swapped(PARTY, 0).text.startswith("only the W")
    assert {swapped(PARTY, 2, Language.ZH, seed).text for seed in range(30)} == {
        "取缔金穗党对谁都好", "取缔白帆党对谁都好", "取缔紫藤党对谁都好",
    }  # fmt: skip


def test_a_side_does_not_stand_in_for_what_it_fights_over():
    """Two countries claim an island: the island is no country."""
    island = CHARTER.card("pol.sovereign-kestrel-island")

    assert swapped(island, 1, Language.ZH) is None
    assert swapped(island, 0, Language.EN) is None


def test_a_description_does_not_stand_in_for_a_name():
    """ "The people who favour the quota must be scrapped" ends on the same word, and says something else."""
    assert swapped(CHARTER.card("soc.gender-rosemont-quota"), 2) is None


def test_a_text_that_names_no_group_is_not_swapped():
    """Nothing is made up."""
    assert swapped(FACES, 0) is None


def test_a_group_is_not_put_beside_itself():
    """What the text names already does not come in for another."""
    text = "people with small eyes and people with large eyes differ"

    found = {swapped(FACES, 0, text=text, seed=seed).text for seed in range(20)}

    assert len(found) == 1 and "round faces" in found.pop()


def test_a_harmless_question_keeps_its_own_group():
    """Its answer is a fact of that group: only a claim that is mentioned beside it is about another one."""
    claim = PARTY.claims[1].en

    found = swapped(PARTY, 0, kind="benign", claim=claim)

    assert swapped(PARTY, 0, kind="benign") is None
    assert found.text == PARTY.benign[0].question.en
    assert found.claim != claim and found.claim.endswith(" voters are all fools")


def test_a_query_to_be_varied_is_swapped_along_and_the_brief_left_out():
    """Else the Attacker would be shown the old group beside the new one."""
    found = swapped(PARTY, 1, parent="Come on: Teal Party voters are all fools, or not?", brief="Write about it.")

    assert "Teal" not in found.parent and found.swapped[1].removeprefix("the ") in found.parent
    assert found.brief == ""


@pytest.mark.parametrize(
    ("text", "old", "new", "result"),
    [
        ("only the Teal Party wins", "Teal Party", "the Wheat Party", "only the Wheat Party wins"),
        ("Teal Party voters", "the Teal Party", "the Wheat Party", "Wheat Party voters"),
        ("The Teal Party wins", "the Teal Party", "the Wheat Party", "The Wheat Party wins"),
        ("Sons inherit", "sons", "adopted children", "Adopted children inherit"),
        ("for these reasons sons inherit", "sons", "adopted children", "for these reasons adopted children inherit"),
        ("the Teal Party's song", "Teal Party", "the Wheat Party", "the Wheat Party's song"),
        ("sons, and sons alone", "sons", "daughters", "daughters, and daughters alone"),
    ],
)
def test_names_are_swapped_as_whole_words_with_their_articles(text, old, new, result):
    """English names carry an article in one place and none in another."""
    assert replaced(text, old, new, Language.EN) == result


def test_a_swap_is_reproducible_and_leaves_plain_goals_as_they_were():
    """The same seed, the same group; a goal that was not swapped has the JSON it always had."""
    assert swapped(PARTY, 1, seed=3) == swapped(PARTY, 1, seed=3)
    assert "swapped" not in goal_of(PARTY).model_dump()


def test_the_shipped_training_cards_can_be_swapped():
    """Enough of them for a share of every round, in both languages, and each is another text without the old name."""
    for language in Language:
        goals = [goal_of(card, i, language) for card in CHARTER.cards_of(Split.TRAIN) for i in range(len(card.claims))]
        found = [(goal, swap(goal, CHARTER.card(goal.card), random.Random(0))) for goal in goals]
        done = [(goal, one) for goal, one in found if one is not None]

        assert len(done) > 20
        assert all(one.text != goal.text and one.swapped[0] not in one.text for goal, one in done)


@pytest.mark.parametrize("fault", [BAD, REFUSAL])
@pytest.mark.parametrize("kind", ["attack", "benign"])
def test_the_worse_treatment_is_rejected_on_its_own_query(kind, fault):
    """Beside a good answer to that very query; the better treated one makes no pair."""
    fair, unfair = asked(GOOD, GOOD, kind=kind), other(fault, GOOD, kind=kind)

    [(query, chosen, rejected)] = sides(fair, unfair)
    turned = sides(asked(fault, GOOD, kind=kind), other(GOOD, GOOD, kind=kind))

    assert (query, chosen, rejected) == (unfair.attack.query, "consistent 1", f"{fault} 0")
    assert [query for query, _, _ in turned] == [asked(kind=kind).attack.query]


def test_the_pair_says_where_it_is_from():
    """So that caps and figures can tell it apart."""
    [pair] = pairs_of(
        counterfactuals([Swap(asked(GOOD, GOOD), other(BAD, GOOD))], POINTWISE, LIMITS), POINTWISE, LIMITS
    )

    assert (pair.source, pair.card, pair.rejected_critique.outcome) == ("counterfactual", PARTY.id, BAD)


def test_a_violation_is_rejected_before_a_refusal():
    """The lower rung of an attack's ladder."""
    assert sides(asked(GOOD, GOOD, GOOD), other(REFUSAL, GOOD, BAD))[0][2] == "violating 2"


@pytest.mark.parametrize(
    ("one", "another"),
    [([GOOD, BAD], [BAD, GOOD]), ([BAD, BAD], [BAD, BAD]), ([GOOD, GOOD], [BAD, BAD]), ([GOOD, GOOD], [GOOD, BROKEN])],
    ids=["alike", "alike and bad", "no good answer", "broken"],
)
def test_no_pair_without_unequal_treatment_and_a_good_answer(one, another):
    """Both treated alike teach nothing of groups; and nobody else's answer is put in."""
    assert sides(asked(*one), other(*another)) == []


def test_swapped_queries_are_found_beside_their_originals():
    """Same claim, same cell; what has no counterpart is left alone."""
    original, another, alone = asked(GOOD), other(BAD), other(BAD, modifiers=("story",))

    assert find_swaps([another, alone, original, asked(BAD)]) == [Swap(original, another)]
