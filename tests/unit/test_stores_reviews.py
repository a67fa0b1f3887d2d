"""Reviews: asked once, decided once, and what is approved becomes exactly one pair."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from tests.unit.test_stores_pairs import PROVENANCE
from vcllm.contracts.attacks import AttackGoal, Cell
from vcllm.contracts.base import Language, digest
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.problems import BadRequest, Conflict, NotFound
from vcllm.contracts.reviews import ReviewDecision, Reviewed, ReviewItem
from vcllm.stores.pairs import PairStream
from vcllm.stores.reviews import ReviewDesk, ReviewStore, approved_pair

GOOD = ReviewDecision(outcome=Outcome.CONSISTENT)
BAD = ReviewDecision(outcome=Outcome.VIOLATING)
UNSURE = Critique(outcome=Outcome.CONSISTENT, score=0.55, reason="The answer keeps to the charter.")


def item(number: int, lineage: str = "line", language: Language = Language.EN, **fields: Any) -> ReviewItem:
    cell = Cell(subdomain="pol.rights", tactic="direct", language=language)
    given = {
        "id": digest([number, lineage]),
        "lineage": lineage,
        "goal": AttackGoal(cell=cell, card="pol.rights-vote", goal=1, text="The valley has no say."),
        "query": f"query {number}",
        "answer": "a fair answer",
        "critique": UNSURE,
        "provenance": PROVENANCE.model_copy(update={"lineage": lineage}),
        "created": float(number),
    }
    return ReviewItem(**{**given, **fields})


@pytest.fixture
def store(client: Redis) -> ReviewStore:
    return ReviewStore(client, "line")


@pytest.fixture
def desk(client: Redis) -> ReviewDesk:
    return ReviewDesk(client)


def pairs_of(client: Redis, lineage: str = "line") -> list[Any]:
    return list(PairStream(client, lineage).entries().values())


class Faulty:
    """A client that dies once, `before` its first script or `after` it: the reply never comes."""

    def __init__(self, client: Redis, when: str) -> None:
        self.client, self.when = client, when

    def eval(self, *args: Any) -> Any:
        done = None if self.when == "before" else self.client.eval(*args)
        raise SystemExit(f"killed {self.when} the script, which gave {done}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


class Counting:
    """A client that notes how many records of a hash are fetched."""

    def __init__(self, client: Redis) -> None:
        self.client, self.fetched = client, 0

    def hmget(self, key: str, names: list[str]) -> Any:
        self.fetched += len(names)
        return self.client.hmget(key, names)

    def __getattr__(self, name: str) -> Any:
        assert name not in ("hgetall", "hvals", "hscan", "hscan_iter"), "these read all there is"
        return getattr(self.client, name)


def test_the_same_answer_is_put_to_people_once(store: ReviewStore, desk: ReviewDesk):
    """A round that is played again, or another that comes to the same answer, asks nobody a second time."""
    assert store.add(item(1)) is True
    assert store.add(item(1)) is False
    assert store.count() == 1

    desk.decide(item(1).id, BAD, "k")

    assert store.add(item(1)) is False
    assert store.count() == 0


def test_pages_are_read_on_from_where_they_ended(store: ReviewStore, desk: ReviewDesk):
    """Oldest first; what is decided between two pages neither hides an item nor shows one twice."""
    sent = [item(number) for number in range(5)]
    for each in sent:
        store.add(each)
    first = desk.pending("line", limit=2)
    for each in first.items:
        desk.decide(each.id, BAD, "k")

    second = desk.pending("line", limit=2, after=first.after)
    third = desk.pending("line", limit=2, after=second.after)

    assert [*first.items, *second.items, *third.items] == sent
    assert (first.waiting, second.waiting, third.waiting) == (5, 3, 3)
    assert third.after is None


def test_a_page_reads_no_more_than_itself(client: Redis, store: ReviewStore):
    """However many wait, and however many were decided."""
    for number in range(30):
        store.add(item(number))
    counting = Counting(client)

    page = ReviewDesk(counting).pending(limit=3)

    assert len(page.items) == counting.fetched == 3


def test_a_lineage_has_its_own_queue_and_all_have_one_together(client: Redis, desk: ReviewDesk):
    """Without a lineage the oldest of all come first."""
    lineages = ["one", "two", "one"]
    sent = [item(number, lineage) for number, lineage in enumerate(lineages)]
    for each in sent:
        ReviewStore(client, each.lineage).add(each)

    assert desk.pending().items == sent
    assert desk.pending("one").items == [sent[0], sent[2]]
    assert ReviewStore(client, "two").count() == 1
    assert not ReviewStore(client, "three").is_known()


def test_an_item_is_found_by_the_first_digits_of_its_id(store: ReviewStore, desk: ReviewDesk):
    """As long as no other one begins alike; before and after it was decided."""
    store.add(item(1, id="a" * 64))
    store.add(item(2, id="a" * 9 + "b" * 55))

    assert desk.get("a" * 10) == item(1, id="a" * 64)
    desk.decide("a" * 9 + "b", BAD, "k")
    assert isinstance(desk.get("a" * 9 + "b"), Reviewed)
    with pytest.raises(BadRequest, match="More than one"):
        desk.get("a" * 8)
    with pytest.raises(BadRequest, match="at least its first 8"):
        desk.get("a" * 7)
    with pytest.raises(NotFound, match="There is no review 'cccccccc'"):
        desk.get("c" * 8)


def test_what_a_person_approves_is_queued_for_training(client: Redis, store: ReviewStore, desk: ReviewDesk):
    """As a pair of the source `human`, with the Critic's doubts as they were."""
    history = [ChatMessage(role="user", content="hello"), ChatMessage(role="assistant", content="hello")]
    worse = Critique(outcome=Outcome.VIOLATING, score=0.05)
    asked = item(1, history=history, rejected="an unfair answer", rejected_critique=worse)
    store.add(asked)

    reviewed = desk.decide(asked.id, GOOD, "key-1")

    [pair] = PairStream(client, "line").claim("worker").values()
    assert (pair.id, pair.source) == (reviewed.pair, "human")
    assert (pair.kind, pair.cell, pair.card, pair.goal) == ("attack", asked.goal.cell, "pol.rights-vote", 1)
    assert (pair.history, pair.query) == (history, "query 1")
    assert (pair.chosen, pair.rejected, pair.margin) == ("a fair answer", "an unfair answer", 0.55 - 0.05)
    assert (pair.chosen_critique, pair.rejected_critique) == (UNSURE, worse)
    assert pair.provenance == asked.provenance
    assert (reviewed.item, reviewed.decision, reviewed.by) == (asked, GOOD, "key-1")


@pytest.mark.parametrize("rejected", [None, Critique(outcome=Outcome.UNSCORED), UNSURE])
def test_a_pair_has_a_margin_only_over_an_answer_that_scored_lower(rejected: Critique | None):
    """Nothing to reject, or nothing that is known to be worse."""
    asked = item(1, rejected=rejected and "another answer", rejected_critique=rejected)

    pair = approved_pair(asked)

    assert pair.margin is None
    assert pair.rejected == asked.rejected


@pytest.mark.parametrize("outcome", [Outcome.VIOLATING, Outcome.REFUSAL, Outcome.BROKEN])
def test_what_a_person_does_not_approve_is_a_label_only(
    client: Redis, store: ReviewStore, desk: ReviewDesk, outcome: Any
):
    """It no longer waits, stays for the Critic, and nobody is trained on it."""
    store.add(item(1))

    reviewed = desk.decide(item(1).id, ReviewDecision(outcome=outcome, note="see the last sentence"), "k")

    assert reviewed.pair is None
    assert pairs_of(client) == []
    assert store.decided() == [reviewed]
    assert store.count() == desk.pending().waiting == 0


def test_the_same_word_again_changes_nothing(client: Redis, store: ReviewStore, desk: ReviewDesk):
    """Whoever says it: the first record comes back, and there is one pair and one label."""
    store.add(item(1))
    first = desk.decide(item(1).id, GOOD, "k1")

    again = desk.decide(item(1).id, ReviewDecision(outcome=Outcome.CONSISTENT, note="yes"), "k2")

    assert again == first == desk.get(item(1).id)
    assert [pair.id for pair in pairs_of(client)] == [first.pair]
    assert store.num_decided() == 1


@pytest.mark.parametrize(("first", "second"), [(GOOD, BAD), (BAD, GOOD)])
def test_another_word_is_refused(client: Redis, store: ReviewStore, desk: ReviewDesk, first: Any, second: Any):
    """The sentence says who decided what; nothing changes, and above all no pair is queued."""
    store.add(item(1))
    kept = desk.decide(item(1).id, first, "k1")
    pairs = pairs_of(client)

    with pytest.raises(Conflict, match=rf"was decided before: {first.outcome}, by key k1\."):
        desk.decide(item(1).id, second, "k2")

    assert desk.get(item(1).id) == kept
    assert pairs_of(client) == pairs


def test_of_two_people_at_once_one_is_heard(client: Redis, store: ReviewStore, desk: ReviewDesk):
    """Approved or not, pair and label always say the same."""
    asked = [item(number) for number in range(20)]
    for each in asked:
        store.add(each)

    def say(job: tuple[ReviewItem, ReviewDecision]) -> bool:
        try:
            return bool(desk.decide(job[0].id, job[1], "k"))
        except Conflict:
            return False

    with ThreadPoolExecutor(4) as pool:
        heard = list(pool.map(say, [(each, word) for each in asked for word in (GOOD, BAD)]))

    assert [one + other for one, other in zip(heard[::2], heard[1::2], strict=True)] == [1] * 20
    assert {pair.id for pair in pairs_of(client)} == {one.pair for one in store.decided()} - {None}
    assert store.num_decided() == 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_a_decision_and_its_pair_or_neither(
    client: Redis, store: ReviewStore, desk: ReviewDesk, when: str
):
    """Both are one command to Redis, so that saying it again always ends with one of each."""
    store.add(item(1))

    with pytest.raises(SystemExit):
        ReviewDesk(Faulty(client, when)).decide(item(1).id, GOOD, "k")

    assert len(pairs_of(client)) == store.num_decided() == (when == "after")
    reviewed = desk.decide(item(1).id, GOOD, "k")
    assert [pair.id for pair in pairs_of(client)] == [reviewed.pair]
    assert store.decided() == [reviewed]


def test_a_pair_that_was_trained_on_is_not_queued_again(client: Redis, store: ReviewStore, desk: ReviewDesk):
    """The pairs' own memory knows what people approved, too."""
    store.add(item(1))
    desk.decide(item(1).id, GOOD, "k")
    stream = PairStream(client, "line")
    stream.acknowledge(stream.claim("worker"), "line-r1")

    assert stream.add(approved_pair(item(1))) is False
    assert stream.claim("worker") == {}
    assert stream.waiting() == 0


def test_decisions_are_read_in_the_order_in_which_they_were_made(store: ReviewStore, desk: ReviewDesk):
    """From any position on, so that the first so many are the same for ever; each lineage has its own."""
    for number in range(4):
        store.add(item(number))
    order = [2, 0, 3]
    made = [desk.decide(item(number).id, BAD, "k") for number in order]

    assert store.decided() == made
    assert store.decided(1) == made[1:]
    assert store.decided(0, 2) == made[:2]
    assert store.decided(2, 2) == []
    assert (store.num_decided(), store.num_decided(since=2), store.num_decided(since=9)) == (3, 1, 0)
    assert ReviewStore(store.redis, "other").decided() == []
