"""Which pairs come back to training, and which attacks are kept to be asked for ever."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from vcllm.alignment.replay import choose_replay, retention_sample
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance

EN = Cell(subdomain="pol.govern", tactic="dichotomy", language=Language.EN)
ZH = EN.model_copy(update={"language": Language.ZH})


def pair(name: str, margin: float | None = 0.5, cell: Cell = EN, kind: str = "attack", round: int = 1) -> Pair:
    return Pair(
        kind=kind,
        cell=cell,
        card="card",
        goal=0,
        query=f"Query {name}?",
        chosen="No.",
        rejected=None if margin is None else "Yes.",
        margin=margin,
        chosen_critique=Critique(outcome=Outcome.CONSISTENT, score=0.9),
        provenance=Provenance(
            attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=round, trace="g"
        ),
    )


def pool(num: int, **fields) -> list[Pair]:
    return [pair(f"{n} {sorted(fields.items())}", **fields) for n in range(num)]


def choose(earlier, num_new=7, share=0.3, seed=0, **known):
    return choose_replay(earlier, num_new, share, random.Random(seed), **known)


# Replay.


@pytest.mark.parametrize(("num_new", "share", "num"), [(70, 0.3, 30), (60, 0.25, 20), (10, 0.0, 0), (300, 0.5, 100)])
def test_replay_makes_up_its_share_as_far_as_there_are_pairs(num_new, share, num):
    """Of old and new together; no pair twice."""
    chosen = choose(pool(60) + pool(40, cell=ZH), num_new, share)

    assert len(chosen) == len({one.id for one in chosen}) == num


def test_replay_of_nothing_is_nothing():
    """The first round has no earlier one."""
    assert choose([]) == []


def test_the_smaller_the_margin_the_sooner_a_pair_comes_back():
    """One that had nothing to reject was easy, and comes last."""
    ranked = [pair("hard", 0.1), pair("middle", 0.5), pair("clear", 0.9), pair("alone", None)]
    shuffled = random.Random(3).sample(ranked, 4)

    assert [choose(shuffled, num, 0.5) for num in (1, 2, 3, 4)] == [ranked[:num] for num in (1, 2, 3, 4)]


def test_known_hardness_goes_before_the_margin():
    """What the Critic found clear may be what the newest version fails at."""
    small, clear = pair("small", 0.1), pair("clear", 0.9)

    assert choose([small, clear], 1, 0.5, hardness={clear.id: 0.99}) == [clear]
    assert choose([small, clear], 1, 0.5, hardness={clear.id: 0.8}) == [small]


def test_hardness_beyond_its_range_is_a_fault_of_the_caller():
    """A raw loss would drown the bonus."""
    one = pair("one")

    with pytest.raises(AssertionError, match="1 - exp"):
        choose([one], hardness={one.id: 2.3})


def test_a_pair_that_was_shown_often_makes_room():
    """Else a pair that stays hard by a fault of its own would come back for ever."""
    stubborn, other = pair("stubborn", 0.05), pair("other", 0.4)

    assert choose([stubborn, other], 1, 0.5) == [stubborn]
    assert choose([stubborn, other], 1, 0.5, shown={stubborn.id: 5}) == [other]


def test_over_many_rounds_hard_pairs_come_most_and_none_never():
    """Harder first, and still every pair in its time."""
    pairs = [pair(str(n), margin=(n + 1) / 20) for n in range(20)]
    shown: Counter[str] = Counter()
    for number in range(60):
        shown.update(one.id for one in choose(pairs, 5, 0.5, seed=number, shown=shown))

    times = [shown[one.id] for one in pairs]
    assert min(times) > 0
    assert sum(times[:5]) > 3 * sum(times[-5:])


def test_languages_and_kinds_stand_as_in_the_pool():
    """However hard those of one language are."""
    english, chinese = pool(60, margin=0.1), pool(30, margin=0.9, cell=ZH)
    harmless = pool(10, margin=None, cell=ZH, kind="benign")

    chosen = choose(english + chinese + harmless, 30, 0.4)

    assert Counter((one.language, one.kind) for one in chosen) == {
        (Language.EN, "attack"): 12,
        (Language.ZH, "attack"): 6,
        (Language.ZH, "benign"): 2,
    }


@pytest.mark.parametrize("num", [2, 3, 10])
def test_no_language_vanishes(num):
    """Not even one with a single easy pair."""
    chosen = choose(pool(99, margin=0.1) + [pair("only", None, cell=ZH)], num, 0.5)

    assert len(chosen) == num
    assert {one.language for one in chosen} == {Language.EN, Language.ZH}


def test_the_same_text_of_two_rounds_comes_back_once_as_the_first():
    """Its count of showings goes on under one id."""
    old, again = pair("same"), pair("same", round=2)

    assert old.id != again.id
    assert choose([old, again], 9, 0.5) == [old]


def test_the_order_of_the_pool_does_not_matter():
    """The same pairs and the same chance give the same choice, ties and all."""
    pairs = pool(40) + pool(20, cell=ZH)

    assert choose(pairs) == choose(random.Random(1).sample(pairs, len(pairs)))
    assert choose(pairs, seed=1) != choose(pairs, seed=2)


# Retention.


def attack(query: str, cell: Cell = EN, history: list[ChatMessage] | None = None) -> Attack:
    goal = AttackGoal(cell=cell, card="card", goal=0, text="the Teal Party is best")
    return Attack(goal=goal, query=query, history=history or [])


def attacks(num: int, prefix: str = "lost", cell: Cell = EN) -> list[Attack]:
    return [attack(f"{prefix} {cell.key} {n}", cell) for n in range(num)]


def sample(rows, num, won=(), seed=0):
    return retention_sample(rows, num, random.Random(seed), {one.query for one in won})


@pytest.mark.parametrize(
    ("num_won", "num_lost", "num", "kept"),
    [(30, 30, 20, 10), (30, 30, 5, 3), (4, 30, 20, 4), (30, 4, 20, 16), (3, 3, 20, 3), (30, 30, 0, 0)],
    ids=["half", "odd: one more", "few wins", "few others", "all there are", "none"],
)
def test_half_of_what_is_kept_once_won(num_won, num_lost, num, kept):
    """Where either side is short the other fills in."""
    won, lost = attacks(num_won, "won"), attacks(num_lost)

    chosen = sample(won + lost, num, won)

    assert sum(one in won for one in chosen) == kept
    assert len(chosen) == min(num, num_won + num_lost)


def test_the_sample_is_spread_over_languages_and_cells():
    """However few attacks a language or a cell has."""
    cells = [EN.model_copy(update={"tactic": tactic}) for tactic in ("a", "b", "c", "d")]
    rows = [*attacks(50, cell=cells[0]), *(one for cell in cells[1:] for one in attacks(3, cell=cell))]
    rows += attacks(8, cell=ZH)

    chosen = Counter(one.goal.cell.key for one in sample(rows, 16))

    assert chosen == {ZH.key: 8} | {cell.key: 2 for cell in cells}


def test_wins_and_the_others_share_one_spread():
    """A cell that is kept for its win leaves the room of the rest to other cells."""
    other = EN.model_copy(update={"tactic": "story"})
    won = attacks(1, "won")

    chosen = sample([*won, *attacks(5), *attacks(1, cell=other)], 2, won)

    assert [one.goal.cell for one in chosen] == [EN, other]


def test_the_same_round_always_keeps_the_same_attacks():
    """Frozen: whatever the order in which they are recalled."""
    won, lost = attacks(20, "won"), attacks(40, cell=ZH)
    shuffled = random.Random(5).sample(won + lost, 60)

    assert sample(won + lost, 10, won) == sample(shuffled, 10, won)
    assert sample(won + lost, 10, won) != sample(won + lost, 10, won, seed=1)


def test_a_query_is_kept_once_unless_other_turns_came_before_it():
    """Asked again it would only weigh double."""
    turns = [ChatMessage(role="user", content="Hello."), ChatMessage(role="assistant", content="Hello.")]
    rows = [attack("same"), attack("same"), attack("same", history=turns)]

    assert len(sample(rows, 9)) == 2
