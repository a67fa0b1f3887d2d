"""Caps on the pairs of a round: per cell and per source, and what goes first."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import product

import pytest

from vcllm.alignment.caps import cap, distinct, largest
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance

STAMP = Provenance(attacker="a", actor="b", critic="c", charter="d", template="e", lineage="f", round=1, trace="g")
GOOD = Critique(outcome=Outcome.CONSISTENT, score=0.9)
SOURCES = ("on_policy", "contradiction", "counterfactual", "human", "imported")


def pair(query="q", source="on_policy", tactic="direct", kind="attack", rejected="r", margin=0.5, **fields):
    return Pair(
        kind=kind,
        cell=Cell(subdomain="pol.govern", tactic=tactic, language=Language.EN),
        card="pol.govern-teal-party",
        goal=0,
        source=source,
        query=query,
        chosen="c",
        rejected=rejected,
        margin=None if rejected is None else margin,
        chosen_critique=GOOD,
        provenance=STAMP,
        **fields,
    )


def capped(pairs, max_per_cell=None, seed=0, **caps):
    return cap(pairs, max_per_cell, caps, random.Random(seed))


def queries(found):
    return [one.query for one in found.kept]


def many(source, num, tactic="direct"):
    return [pair(f"{source} {tactic} {number}", source, tactic) for number in range(num)]


def test_without_caps_everything_stays():
    """In the order it came."""
    pairs = [pair(str(number), tactic=str(number % 3)) for number in range(9)]

    found = capped(pairs)

    assert (found.kept, found.dropped) == (pairs, Counter())


def test_a_cell_keeps_what_rejects_something_and_of_that_the_wider_margin():
    """Approved answers alone teach less than a contrast; of contrasts the Critic is surest of the wide ones."""
    pairs = [
        pair("alone", rejected=None),
        pair("narrow", margin=0.2),
        pair("wide", margin=0.8),
        pair("mid", margin=0.5),
    ]

    found = capped(pairs, max_per_cell=2)

    assert queries(found) == ["wide", "mid"]
    assert found.dropped == {"cell_full": 2}


def test_what_people_decided_stays_first():
    """Their time costs more than a margin."""
    pairs = [pair("wide", margin=0.9), pair("asked", source="human", rejected=None)]

    assert queries(capped(pairs, max_per_cell=1)) == ["asked"]


def test_benign_and_attack_pairs_of_a_cell_are_counted_apart():
    """Else attacks would crowd out what keeps the Actor from refusing."""
    pairs = [pair(f"{kind} {number}", kind=kind) for kind in ("attack", "benign") for number in range(3)]

    found = capped(pairs, max_per_cell=2)

    assert Counter(one.kind for one in found.kept) == {"attack": 2, "benign": 2}


def test_equal_pairs_of_a_cell_are_drawn_by_chance():
    """Reproducibly, and not always the first ones."""
    pairs = many("on_policy", 6)
    drawn = [tuple(queries(capped(pairs, max_per_cell=2, seed=seed))) for seed in range(20)]

    assert len(set(drawn)) > 5
    assert drawn[3] == tuple(queries(capped(pairs, max_per_cell=2, seed=3)))


def test_a_source_keeps_to_its_share_of_what_is_kept():
    """Not of what there was before: 2 of 10, although 6 of 14 were there."""
    found = capped(many("on_policy", 8) + many("imported", 6), imported=0.2)

    assert Counter(one.source for one in found.kept) == {"on_policy": 8, "imported": 2}
    assert found.dropped == {"source_full": 4}


def test_a_source_gives_up_pairs_where_a_cell_has_most():
    """Its small cells stay covered, though the large one has the wider margins."""
    direct = [pair(f"imported {number}", "imported", margin=0.9) for number in range(6)]
    imported = direct + many("imported", 1, "story") + many("imported", 1, "academic")

    found = capped(many("on_policy", 6) + imported, imported=0.34)

    assert Counter(one.cell.tactic for one in found.kept if one.source == "imported") == {
        "direct": 1, "story": 1, "academic": 1,
    }  # fmt: skip


def test_a_place_that_a_source_leaves_is_filled_again():
    """Wide imported pairs fill a cell, have to go, and the cell's own pair comes back."""
    imported = [pair(f"imported {number}", "imported", margin=0.9) for number in range(2)]

    found = capped([*imported, pair("own", margin=0.3), *many("on_policy", 2, "story")], max_per_cell=2, imported=0.0)

    assert queries(found) == ["own", "on_policy story 0", "on_policy story 1"]
    assert found.dropped == {"source_full": 2}


def test_a_source_alone_cannot_keep_to_a_share():
    """A fifth of all is nothing where there is nothing else."""
    assert capped(many("imported", 5), imported=0.2).kept == []
    assert len(capped(many("imported", 5), imported=1.0).kept) == 5


def test_shares_are_exact():
    """29 of 100 are a share of 0.29; in floating point 0.29 times 100 is less than 29."""
    assert largest({"on_policy": 71, "imported": 40}, {"imported": 0.29}) == {"on_policy": 71, "imported": 29}


def test_as_many_stay_as_the_shares_allow():
    """Against all ways to keep some, for small numbers."""
    for counts in product(range(5), range(5), range(4)):
        given = dict(zip(SOURCES[:3], counts, strict=True))
        caps = {"contradiction": 0.4, "counterfactual": 0.25}
        most = max(
            sum(kept)
            for kept in product(*(range(num + 1) for num in counts))
            if all(Fraction(num) <= Fraction(str(caps.get(source, 1))) * sum(kept)
                   for source, num in zip(given, kept, strict=True))
        )  # fmt: skip

        assert sum(largest(given, caps).values()) == most


@pytest.mark.parametrize("seed", range(40))
def test_caps_hold_whatever_comes(seed):
    """Every cell and every source within bounds, order kept, every pair accounted for."""
    chance = random.Random(seed)
    pairs = [
        pair(str(number), chance.choice(SOURCES), str(chance.randrange(5)), chance.choice(("attack", "benign")),
             chance.choice((None, "r")), chance.choice((0.2, 0.5)))
        for number in range(chance.randrange(80))
    ]  # fmt: skip
    most = chance.choice((None, 1, 2, 5))
    caps = {source: chance.choice((0.0, 0.1, 0.25, 0.5, 1.0)) for source in chance.sample(SOURCES, 3)}

    found = cap(pairs, most, caps, chance)

    sources = Counter(one.source for one in found.kept)
    cells = Counter((one.kind, one.cell.key) for one in found.kept)
    assert all(sources[source] <= Fraction(str(share)) * len(found.kept) for source, share in caps.items())
    assert most is None or max(cells.values(), default=0) <= most
    assert found.kept == [one for one in pairs if one in found.kept]
    assert len(found.kept) + found.dropped.total() == len(pairs)
    assert all(found.dropped.values()) and set(found.dropped) <= {"cell_full", "source_full"}


def test_of_pairs_that_say_the_same_the_first_names_the_source():
    """A contradiction is often the query's own worst answer; after other turns it is another pair."""
    turns = [ChatMessage(role="user", content="Hello."), ChatMessage(role="assistant", content="Hello, too.")]
    contradiction, own, later = pair(source="contradiction"), pair(margin=0.3), pair(history=turns)

    assert distinct([contradiction, own, later, pair(rejected=None)]) == [contradiction, later, pair(rejected=None)]
