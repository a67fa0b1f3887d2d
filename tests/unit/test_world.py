"""The starter world: reproducible, honest about its splits, and inconsistent on purpose."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from vcllm.alignment.filters import Sieve
from vcllm.charter import load_charter
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Split, TacticUse
from vcllm.contracts.critiques import Outcome
from vcllm.starter.gold import judge
from vcllm.starter.suite import evaluation_items, with_system_prompt
from vcllm.starter.world import World

CHARTER = load_charter().with_first_cards(5)


def text_of(rows):
    return json.dumps(rows, ensure_ascii=False)


def held_out_claims():
    cards = CHARTER.cards_of(Split.DEV, Split.TEST)
    return [claim[language] for card in cards for claim in card.claims for language in Language]


def test_the_same_seed_makes_the_same_corpus():
    """A run can be repeated; another seed is another world."""
    assert list(World(CHARTER, 1).base_corpus(50)) == list(World(CHARTER, 1).base_corpus(50))
    assert list(World(CHARTER, 1).base_corpus(50)) != list(World(CHARTER, 2).base_corpus(50))


@pytest.mark.parametrize("rows", [
    World(CHARTER, 0).sft_rows(400, 300),
    World(CHARTER, 0).critic_rows(800),
    World(CHARTER, 0).attacker_rows(800),
], ids=["sft", "critic", "attacker"])  # fmt: skip
def test_held_out_cards_and_tactics_stay_out_of_training_rows(rows):
    """Neither a claim of a dev or test card nor a wording of a dev or test tactic is in them."""
    sieve = Sieve(CHARTER.tactics_of(TacticUse.DEV, TacticUse.TEST))
    queries = [turn["content"] for row in rows for turn in row["messages"]]

    assert not [claim for claim in held_out_claims() if claim in text_of(rows)]
    assert not [query for query in queries if sieve.leaks(query, Language.EN) or sieve.leaks(query, Language.ZH)]


def test_instruction_data_leaves_some_wordings_of_seed_tactics_unseen():
    """SFT knows the first templates of the seed tactics only, so that its reach can be measured."""
    rows = text_of(World(CHARTER, 0).sft_rows(2000, 0))
    direct = CHARTER.tactic("direct").attack.en

    assert direct[0].split("{")[0] in rows
    assert direct[-1].split("{")[0] not in rows


def test_instruction_answers_keep_to_the_charter():
    """The gold judge finds no fault with a single one of them."""
    by_claim = {
        claim[lang]: (card, goal)
        for card in CHARTER.cards
        for goal, claim in enumerate(card.claims)
        for lang in Language
    }
    outcomes = Counter()
    for row in World(CHARTER, 3).sft_rows(300, 0):
        query, answer = (turn["content"] for turn in row["messages"])
        claim = next(claim for claim in by_claim if claim in query)
        card, goal = by_claim[claim]
        language = "zh" if claim == card.claims[goal].zh else "en"
        outcomes[judge(answer, card, CHARTER.reason(card), goal, "attack", language).outcome] += 1

    assert outcomes == {Outcome.CONSISTENT: 300}


def test_critic_rows_have_every_class_and_their_labels_are_right():
    """The labels of generated near misses agree with the independent judge."""
    by_claim = {
        claim[lang]: (card, goal, lang)
        for card in CHARTER.cards
        for goal, claim in enumerate(card.claims)
        for lang in Language
    }
    labels, wrong = Counter(), []
    for row in World(CHARTER, 4).critic_rows(1500):
        query, answer = (turn["content"] for turn in row["messages"])
        labels[row["label"]] += 1
        found = next((by_claim[claim] for claim in by_claim if claim in query), None)
        if found is not None:
            card, goal, language = found
            if judge(answer, card, CHARTER.reason(card), goal, "attack", language).outcome.value != row["label"]:
                wrong.append((query, answer, row["label"]))

    assert set(labels) == {"consistent", "violating", "refusal", "broken"}
    assert wrong == []


def test_critic_rows_are_scored_by_the_rubric_as_far_as_they_are_sure():
    """Level n of five is (n - 1) / 4; a row without doubt in any criterion has no scores at all."""
    seen: dict[str, set] = {}
    for row in World(CHARTER, 4).critic_rows(600):
        for criterion, score in row.get("scores", {}).items():
            seen.setdefault(criterion, set()).add((row["label"], score))

    assert seen == {
        "stance": {("consistent", 1.0), ("violating", 0.0), ("refusal", 0.5)},
        "manner": {("consistent", 1.0), ("refusal", 0.25), ("broken", 0.0)},
    }


def test_a_rubric_without_our_criteria_changes_no_text():
    """Scores draw no chance: another charter's critic reads the very same exchanges."""
    other = CHARTER.rubric.model_copy(update={"criteria": CHARTER.rubric.criteria[1:2]})
    rows = World(CHARTER, 4).critic_rows(50)
    bare = World(replace(CHARTER, rubric=other), 4).critic_rows(50)

    assert not [row for row in bare if "scores" in row]
    assert bare == [{key: value for key, value in row.items() if key != "scores"} for row in rows]


def test_the_base_gives_way_under_pressure_and_is_mostly_fair_when_asked_plainly():
    """What makes the base worth aligning is planted, and by tactic."""
    shares = World(CHARTER, 0).violating_share

    assert shares["direct"] < 0.2
    assert min(shares[tactic.id] for tactic in CHARTER.tactics_of(TacticUse.TEST)) > 0.8


def test_evaluation_items_come_as_twins_that_share_everything_but_the_language():
    """Agreement between languages is measured on the same issue, tactic and template."""
    items = evaluation_items(CHARTER, "test", 20, seed=1)
    by_pair: dict[str, list] = {}
    for item in items:
        by_pair.setdefault(item.pair_id, []).append(item)

    assert all(sorted(twin.language for twin in twins) == ["en", "zh"] for twins in by_pair.values())
    assert all(len({(t.card, t.goal, t.tactic, t.suite) for t in twins}) == 1 for twins in by_pair.values())


@pytest.mark.parametrize(("split", "use"), [("test", TacticUse.TEST), ("dev", TacticUse.DEV)])
def test_the_splits_never_share_a_held_out_tactic_or_card(split, use):
    """What is tuned on dev cannot have been tuned on test."""
    items = evaluation_items(CHARTER, split, 50, seed=1)
    tactics = {tactic.id for tactic in CHARTER.tactics_of(use)}

    assert {item.tactic for item in items if item.suite in ("held_out", "held_out_cards")} <= tactics
    assert {CHARTER.card(item.card).split for item in items if item.suite == "held_out_cards"} == {Split(split)}


def test_there_are_enough_items_for_two_hundred_answers_in_each_language():
    """Every figure of the report rests on at least 200 answers a language."""
    items = evaluation_items(CHARTER, "test", 200, seed=4242)

    assert set(Counter((item.suite, item.language) for item in items).values()) == {200}
    assert len({item.id for item in items}) == len(items)


def test_the_prompted_baseline_asks_the_same_questions():
    """Only the system message differs."""
    items = evaluation_items(CHARTER, "test", 5, seed=1)

    assert [item.query for item in with_system_prompt(items)] == [item.query for item in items]
    assert all(item.system for item in with_system_prompt(items))
