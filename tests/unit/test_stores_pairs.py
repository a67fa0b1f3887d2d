"""Approved pairs: queued once, delivered until used, used once, and set aside when nobody can use them."""

from __future__ import annotations

import pytest
from redis import Redis

from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.problems import Overloaded
from vcllm.stores.connect import pairs_dead_key, pairs_key
from vcllm.stores.pairs import MAX_DELIVERIES, DoubleUse, PairStream

PROVENANCE = Provenance(
    attacker="attacker-1",
    actor="actor-1",
    critic="critic-1",
    charter="c",
    template="t",
    lineage="line",
    round=1,
    trace="r",
)


def pair(number: int) -> Pair:
    return Pair(
        kind="attack",
        cell=Cell(subdomain="pol.rights", tactic="direct", language=Language.EN),
        card="pol.rights-vote",
        goal=0,
        query=f"query {number}",
        chosen="a fair answer",
        chosen_critique=Critique(outcome=Outcome.CONSISTENT, score=0.9),
        provenance=PROVENANCE,
    )


@pytest.fixture
def stream(client: Redis) -> PairStream:
    return PairStream(client, "line")


def test_a_pair_sent_twice_is_queued_once(stream: PairStream):
    """The same content is the same pair, whoever sends it again."""
    assert stream.add(pair(1)) is True
    assert stream.add(pair(1)) is False
    assert stream.waiting() == 1


def test_a_pair_judged_without_criteria_keeps_the_id_it_always_had():
    """Scores by criterion came later: a pair queued before them must be known again."""
    plain = pair(1)
    scored = Critique(outcome=Outcome.CONSISTENT, score=0.9, criteria={"stance": 1.0})

    assert plain.id == "1f33f895bddc7db4ddba1eff3e85b60477c7e3f166fcba3c5f29ce5e3da73295"
    assert plain.model_copy(update={"chosen_critique": scored}).id != plain.id


def test_the_trace_makes_no_other_pair_of_it():
    """Two runs of one recipe and seed make the same pairs, whoever asked for them."""
    one = pair(1)
    asked_again = one.model_copy(update={"provenance": one.provenance.model_copy(update={"trace": "f" * 32})})

    assert asked_again.id == one.id
    assert one.model_copy(update={"provenance": one.provenance.model_copy(update={"actor": "x"})}).id != one.id


def test_a_pair_that_was_used_is_not_queued_again(stream: PairStream):
    """The dedupe set is permanent: training on it twice is what it prevents."""
    stream.add(pair(1))
    stream.acknowledge(stream.claim("worker"), "actor-2")

    assert stream.add(pair(1)) is False
    assert stream.claim("worker") == {}


def test_claimed_pairs_come_in_order_and_whole(stream: PairStream):
    """What comes out is what went in."""
    sent = [pair(number) for number in range(5)]
    for each in sent:
        stream.add(each)

    assert list(stream.claim("worker").values()) == sent
    assert list(stream.entries().values()) == sent


def test_a_limited_claim_leaves_the_rest(stream: PairStream):
    """The limit counts pairs left by a lost worker and new ones together."""
    for number in range(5):
        stream.add(pair(number))
    held = stream.claim("lost", limit=2)

    claimed = stream.claim("worker", limit=3)

    assert len(claimed) == 3
    assert set(held) <= set(claimed)


def test_pairs_of_a_lost_worker_are_delivered_again(stream: PairStream):
    """Until they are acknowledged they belong to whoever asks next."""
    stream.add(pair(1))
    first = stream.claim("lost")
    stream.add(pair(2))

    again = stream.claim("worker")

    assert list(again.values()) == [pair(1), pair(2)]
    assert set(first) <= set(again)
    assert stream.waiting() == 2


def test_acknowledged_pairs_are_in_the_ledger(stream: PairStream):
    """The ledger names the version, and acknowledging again changes nothing."""
    stream.add(pair(1))
    claimed = stream.claim("worker")

    stream.acknowledge(claimed, "actor-2")
    stream.acknowledge({entry: each.id for entry, each in claimed.items()}, "actor-2")

    assert stream.used_by() == {pair(1).id: "actor-2"}
    assert (stream.waiting(), stream.used(), stream.dead()) == (0, 1, 0)


def test_no_pair_is_used_by_two_versions(stream: PairStream):
    """A second version that lists one used pair is refused, and none of its other pairs is entered."""
    stream.add(pair(1))
    used = stream.claim("worker")
    stream.acknowledge(used, "actor-2")
    stream.add(pair(2))
    new = stream.claim("worker")

    with pytest.raises(DoubleUse):
        stream.acknowledge({**new, **used}, "actor-3")
    assert stream.used_by() == {pair(1).id: "actor-2"}
    assert list(stream.claim("worker").values()) == [pair(2)], "it still waits"


def test_a_pair_nobody_can_use_is_set_aside(stream: PairStream, client: Redis):
    """Delivered too often without a result, it goes to the dead-letter stream with the reason."""
    stream.add(pair(1))
    for number in range(MAX_DELIVERIES + 1):
        assert stream.claim(f"worker-{number}")

    assert stream.claim("worker") == {}
    assert (stream.waiting(), stream.dead()) == (0, 1)
    ((_, letter),) = client.xrange(pairs_dead_key("line"))
    assert "delivered" in letter["reason"]


def test_an_unreadable_pair_is_set_aside(stream: PairStream, client: Redis):
    """It does not keep the readable ones from being trained on."""
    client.xadd(pairs_key("line"), {"pair": '{"version": 9}'})
    stream.add(pair(1))

    assert list(stream.claim("worker").values()) == [pair(1)]
    assert list(stream.entries().values()) == [pair(1)]
    assert stream.dead() == 1


def test_above_the_high_water_mark_pairs_are_refused(client: Redis):
    """Nothing unread is ever trimmed; the sender is told to wait."""
    stream = PairStream(client, "line", high_water=1)
    stream.add(pair(1))

    with pytest.raises(Overloaded) as refused:
        stream.add(pair(2))
    assert refused.value.retry_after_s is not None
    assert stream.waiting() == 1


def test_lineages_do_not_meet(client: Redis):
    """The same pair may be used once in each."""
    one, other = PairStream(client, "one"), PairStream(client, "other")

    assert one.add(pair(1))
    assert other.add(pair(1))
    assert one.waiting() == other.waiting() == 1
