"""Pairs that quote the evaluation are blocked; what rounds are made of is not."""

from __future__ import annotations

import time

import pytest

from services.trainer.blocking import Blocker, kept_from_rounds
from vcllm.charter import load_charter
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.recipes import EvaluationParams, WorldDial
from vcllm.evaluation.bench.load import held_out_questions
from vcllm.starter.suite import items_of_run
from vcllm.starter.world import World

CHARTER = load_charter()
STAMP = Provenance(attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=1, trace="g")
GOOD = Critique(outcome=Outcome.CONSISTENT, score=0.9)
ITEM, QUESTION = next((item, text) for item, text in held_out_questions() if item.endswith("-zh"))
MAX_BLOCKED = 0.02


@pytest.fixture(scope="module")
def items():
    report, gate = items_of_run(CHARTER, EvaluationParams())
    return [*report, *gate]


@pytest.fixture(scope="module")
def blocker(items):
    return Blocker(kept_from_rounds(items))


def pair(query="Is the Teal Party best?", chosen="Fair voters differ.", rejected=None, history=()):
    cell = Cell(subdomain="pol.govern", tactic="direct", language=Language.EN)
    return Pair(
        kind="attack",
        cell=cell,
        card="pol.govern-teal-party",
        goal=0,
        history=list(history),
        query=query,
        chosen=chosen,
        rejected=rejected,
        chosen_critique=GOOD,
        provenance=STAMP,
    )


def round_pairs(num):
    """Queries as the starter's Attacker learns to write them, some over several turns, with the charter's answers."""
    dial = WorldDial(look_alikes=0.3, compositions=0.3, multi_turn=0.3)
    world = World(CHARTER, "blocking", dial)
    queries = [row["messages"][-1]["content"] for row in world.attacker_rows(num)]
    answers = [row["messages"][-1]["content"] for row in world.sft_rows(num, 0)]
    return [pair(query, answer) for query, answer in zip(queries, answers, strict=True)]


@pytest.mark.parametrize(
    "planted",
    [
        pair(QUESTION),
        pair(f"请教一下：{QUESTION}"),
        pair(chosen=f"你问的是“{QUESTION}”"),
        pair(history=[ChatMessage(role="user", content=QUESTION), ChatMessage(role="assistant", content="嗯。")]),
    ],
    ids=["query", "within the query", "chosen", "history"],
)
def test_a_question_of_the_bench_is_found_wherever_it_is_learned(blocker, planted):
    """And named, so that somebody can look it up."""
    assert blocker.fault(planted) == ITEM


def test_what_is_rejected_may_quote(blocker):
    """It is not learned."""
    assert blocker.fault(pair(rejected=QUESTION)) is None


def test_held_out_items_of_the_run_are_blocked_and_seen_ones_are_not(blocker, items):
    """Seed tactics on training cards are what the rounds are played with."""
    one_of = {item.suite: item for item in reversed(items)}

    assert blocker.fault(pair(one_of["held_out"].query)) is not None
    assert blocker.fault(pair(one_of["held_out_cards"].query)) is not None
    assert blocker.fault(pair(one_of["seen"].query)) is None


def test_a_starter_round_is_not_blocked(blocker):
    """Its cards and tactics are kept apart by construction; 1,000 pairs take no time to look at."""
    pairs = round_pairs(1000)

    started = time.perf_counter()
    found = blocker.sift(pairs)
    seconds = time.perf_counter() - started

    assert len(found.kept) >= (1 - MAX_BLOCKED) * len(pairs)
    assert seconds < 10


def test_what_is_blocked_is_counted_by_reason_and_by_item(blocker):
    """The rest keeps its order."""
    first, second = pair("First?"), pair("Second?")

    found = blocker.sift([first, pair(QUESTION), second, pair(f"{QUESTION}！")])

    assert found.kept == [first, second]
    assert (found.dropped, found.items) == ({"contaminated": 2}, {ITEM: 2})
