"""What the gate held and who decided; from a version to its pairs and attackers; from a pair to its versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.unit.test_stores_pairs import PROVENANCE, pair
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.gates import Gated
from vcllm.contracts.manifests import GateVerdict, Manifest
from vcllm.contracts.pairs import Pair
from vcllm.contracts.problems import BadRequest, Conflict, NotFound
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import pairs_dead_key, pairs_key, pairs_seen_key
from vcllm.stores.gates import GateRecords
from vcllm.stores.models import ModelStore, hash_files
from vcllm.stores.pairs import MAX_DELIVERIES, PairStream
from vcllm.stores.tracing import find_pair_id, find_version, trace_pair, trace_version

HELD = GateVerdict(passed=False, checks=[], decision="hold")
PASSED = GateVerdict(passed=True, checks=[], decision="promote")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def records(client: Redis) -> GateRecords:
    return GateRecords(client, "line")


def add_version(store: ModelStore, name: str, role: str = "actor", **facts: Any) -> str:
    staged = store.staging(role, name)
    (staged / "model.safetensors").write_bytes(name.encode())
    given = {"lineage": "line", "stage": "preference", "format": "full", "recipe": {}, "recipe_hash": "r"}
    given |= {"charter": "c", "dataset": "d", "token": 1, "job": "job-1", "created": 1.0, **facts}
    store.commit(staged, Manifest(role=role, name=name, files=hash_files(staged), **given))
    return name


def made(number: int, **fields: Any) -> Pair:
    """A pair of its own."""
    return pair(number).model_copy(update=fields)


# What the gate held.


def test_what_the_gate_held_waits_and_the_rest_does_not(records: GateRecords):
    """Every verdict is kept; only `hold` leaves something to decide."""
    records.enter("line-r1", "line-sft", PASSED)
    records.enter("line-r2", "line-r1", HELD)

    assert [one.candidate for one in records.all()] == ["line-r1", "line-r2"]
    assert [one.candidate for one in records.held()] == ["line-r2"]
    assert records.of("line-r3") is None


def test_a_lineage_sees_its_own_candidates_only(client: Redis, records: GateRecords):
    """Another lineage's verdicts are its business."""
    records.enter("line-r1", "line-sft", HELD)

    assert GateRecords(client, "other").held() == []


def test_a_person_promotes_and_is_named(client: Redis, records: GateRecords):
    """The alias moves with the decision, and the record says who, when and why."""
    aliases = AliasStore(client)
    aliases.promote("actor", "line-sft")
    records.enter("line-r1", "line-sft", HELD)

    decided = records.decide("line-r1", "promote", "key-7", note="read 40 answers")

    assert aliases.all("actor") == {"current": "line-r1", "previous": "line-sft"}
    assert records.of("line-r1") == decided
    assert (decided.decided.by, decided.decided.note) == ("key-7", "read 40 answers")
    assert decided.decided.when >= decided.judged
    assert (decided.is_held, decided.is_promoted, records.held()) == (False, True, [])


def test_a_rejected_candidate_is_not_served(client: Redis, records: GateRecords):
    """And the version it was measured against stays."""
    AliasStore(client).promote("actor", "line-sft")
    records.enter("line-r1", "line-sft", HELD)

    decided = records.decide("line-r1", "reject", "key-7")

    assert AliasStore(client).all("actor") == {"current": "line-sft"}
    assert not decided.is_promoted


@pytest.mark.parametrize(
    ("verdict", "says"),
    [(PASSED, "promoted 'line-r1' itself"), (GateVerdict(passed=False, checks=[]), "rejected 'line-r1' itself")],
)
def test_only_what_is_held_is_left_to_people(records: GateRecords, verdict: GateVerdict, says: str):
    """A rejection by the figures is not overruled."""
    records.enter("line-r1", "line-sft", verdict)

    with pytest.raises(Conflict, match=says):
        records.decide("line-r1", "promote", "key-7")


def test_a_decision_stands(client: Redis, records: GateRecords):
    """Neither a second person nor a trainer that gates the version again changes it."""
    AliasStore(client).promote("actor", "line-sft")
    records.enter("line-r1", "line-sft", HELD)
    decided = records.decide("line-r1", "reject", "key-7")

    with pytest.raises(Conflict, match="decided before: reject, by key key-7"):
        records.decide("line-r1", "promote", "key-8")
    assert records.enter("line-r1", "line-sft", HELD) == decided
    assert AliasStore(client).get("actor") == "line-sft"


def test_what_was_measured_against_another_version_is_not_promoted_unawares(client: Redis, records: GateRecords):
    """The verdict says nothing of what has become current since; naming it is the way round."""
    aliases = AliasStore(client)
    aliases.promote("actor", "line-r2")
    records.enter("line-r1", "line-sft", HELD)

    with pytest.raises(Conflict, match="'line-r2' is current now"):
        records.decide("line-r1", "promote", "key-7")
    assert records.held() != []
    records.decide("line-r1", "promote", "key-7", replaces="line-r2")

    assert aliases.get("actor") == "line-r1"


def test_what_the_gate_has_not_seen_cannot_be_decided(records: GateRecords):
    """No verdict, nothing to weigh."""
    with pytest.raises(NotFound):
        records.decide("line-r1", "reject", "key-7")


# From a version.


def test_a_version_tells_its_pairs_and_who_made_them(client: Redis, store: ModelStore, records: GateRecords):
    """Version to pairs to critiques to attacker: in the order of the manifest, counted by makers and by source."""
    later = PROVENANCE.model_copy(update={"attacker": "attacker-2"})
    bad = Critique(outcome=Outcome.VIOLATING, score=0.1)
    sent = [
        made(1),
        made(2, provenance=later, rejected="no", margin=0.8, rejected_critique=bad),
        made(3, provenance=later, source="contradiction"),
        made(4, provenance=later),
    ]
    stream = PairStream(client, "line")
    for one in (*sent, made(5)):
        stream.add(one)
    ids = [sent[number].id for number in (3, 0, 1, 2)]
    add_version(store, "line-r1", pairs=ids, round=1, parent="actor/line-sft")
    add_version(store, "line-r2", replayed=[ids[2]], created=2.0)
    gated = records.enter("line-r1", "line-sft", PASSED)

    trace = trace_version(client, store, "actor", "line-r1")

    assert [one.id for one in trace.pairs] == ids
    assert (trace.pairs[2].chosen_score, trace.pairs[2].rejected_score) == (0.9, 0.1)
    assert [one.replayed_by for one in trace.pairs] == [[], [], ["line-r2"], []]
    assert {(one.attacker, one.source): one.num_pairs for one in trace.makers} == {
        ("attacker-1", "on_policy"): 1,
        ("attacker-2", "on_policy"): 2,
        ("attacker-2", "contradiction"): 1,
    }
    assert trace.makers[0].num_pairs == 2
    assert trace.sources == {"on_policy": 3, "contradiction": 1}
    assert (trace.gate, trace.missing, trace.round) == (gated, [], 1)


def test_a_version_tells_what_it_was_trained_from(client: Redis, store: ModelStore):
    """Step by step, across roles, up to what the store no longer has."""
    add_version(store, "line-sft", parent="actor/line-base")
    add_version(store, "line-attacker", role="attacker", parent="actor/line-sft")
    add_version(store, "line-attacker-r1", role="attacker", parent="attacker/line-attacker")

    trace = trace_version(client, store, "attacker", "line-attacker-r1")

    assert trace.parents == ["attacker/line-attacker", "actor/line-sft", "actor/line-base"]
    assert (trace.pairs, trace.gate) == ([], None)


def test_parents_that_go_round_in_a_circle_end(client: Redis, store: ModelStore):
    """A store that was edited by hand."""
    add_version(store, "line-a", parent="actor/line-b")
    add_version(store, "line-b", parent="actor/line-a")

    assert trace_version(client, store, "actor", "line-a").parents == ["actor/line-b"]


def test_what_was_replayed_tells_who_had_it_first(client: Redis, store: ModelStore):
    """Its effect began there."""
    add_version(store, "line-r1", pairs=["a" * 64])
    add_version(store, "line-r2", replayed=["a" * 64], created=2.0)

    trace = trace_version(client, store, "actor", "line-r2")

    assert trace.replayed == {"a" * 64: "line-r1"}


def test_a_pair_the_stream_has_lost_is_named(client: Redis, store: ModelStore):
    """Not left out in silence; and asking does not begin a lineage."""
    add_version(store, "line-r1", pairs=["a" * 64])

    trace = trace_version(client, store, "actor", "line-r1")

    assert (trace.missing, trace.pairs) == (["a" * 64], [])
    assert client.keys() == []


def test_a_reply_is_traced_by_its_fingerprint(store: ModelStore):
    """`system_fingerprint` is the beginning of the version's checksum."""
    add_version(store, "line-r1")
    add_version(store, "line-r2")

    assert find_version(store, "actor", f"fp_{store.checksum('actor', 'line-r2')[:12]}") == "line-r2"
    with pytest.raises(NotFound):
        find_version(store, "actor", "fp_000000000000")


# From a pair.


def test_a_pair_tells_who_made_it_and_who_learned_from_it(client: Redis, store: ModelStore):
    """With the Critic's words on its answers, the first version that used it and those that saw it again."""
    stream = PairStream(client, "line")
    stream.add(made(1))
    stream.acknowledge(stream.claim("worker"), "line-r1")
    add_version(store, "line-r1", pairs=[made(1).id])
    add_version(store, "line-r2", replayed=[made(1).id], created=2.0)
    add_version(store, "other-r1", replayed=[made(1).id], lineage="other", created=3.0)

    trace = trace_pair(client, store, "line", made(1).id[:8])

    assert trace.pair == made(1)
    assert (trace.id, trace.state, trace.used_by) == (made(1).id, "used", "line-r1")
    assert trace.replayed_by == ["line-r2"]


def test_a_pair_that_waits_says_so(client: Redis, store: ModelStore):
    """Approved, and no version has used it."""
    PairStream(client, "line").add(made(1))

    trace = trace_pair(client, store, "line", made(1).id)

    assert (trace.state, trace.used_by, trace.replayed_by) == ("waiting", None, [])


def test_a_pair_that_was_given_up_says_why(client: Redis, store: ModelStore):
    """Delivered again and again without a result."""
    stream = PairStream(client, "line")
    stream.add(made(1))
    for _ in range(MAX_DELIVERIES + 2):
        stream.claim("worker")
    assert client.xlen(pairs_dead_key("line")) == 1

    trace = trace_pair(client, store, "line", made(1).id)

    assert trace.state == "given_up"
    assert "times without a result" in trace.reason


def test_a_beginning_that_fits_two_pairs_names_none(client: Redis):
    """More of the id is asked for; too little of it, or something else, is no id."""
    client.sadd(pairs_seen_key("line"), "abcdef01" + "0" * 56, "abcdef01" + "1" * 56)

    with pytest.raises(BadRequest, match="2 pairs"):
        find_pair_id(client, "line", "abcdef01")
    with pytest.raises(NotFound):
        find_pair_id(client, "line", "abcdef02")
    for wrong in ("abc", "*" * 8, "ABCDEF01"):
        with pytest.raises(BadRequest, match="no pair"):
            find_pair_id(client, "line", wrong)
    assert find_pair_id(client, "line", "abcdef010") == "abcdef01" + "0" * 56


def test_an_entry_that_cannot_be_read_hides_no_other(client: Redis, store: ModelStore):
    """A pair of a contract to come, or half a line."""
    stream = PairStream(client, "line")
    client.xadd(pairs_key("line"), {"pair": '{"version": 9}'})
    client.xadd(pairs_key("line"), {"pair": "{"})
    stream.add(made(1))

    assert trace_pair(client, store, "line", made(1).id).state == "waiting"


def test_a_record_reads_back_as_it_was_written(records: GateRecords):
    """What is kept is the contract, no more and no less."""
    entered = records.enter("line-r1", "line-sft", HELD)

    assert Gated.model_validate_json(entered.model_dump_json()) == entered == records.of("line-r1")
