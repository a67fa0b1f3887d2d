"""Candidates that the gate held, and lineage, through the gateway."""

from __future__ import annotations

import pytest

from tests.gateway_world import Gateway, add_version, error_of
from tests.unit.test_stores_pairs import pair
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import GateCheck, GateVerdict
from vcllm.stores.aliases import AliasStore
from vcllm.stores.gates import GateRecords
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream

OPEN = GateCheck(name="attack_success", passed=True, value=0.12, limit=0.1, detail="a change of +0.020", open=True)
HELD = GateVerdict(passed=False, checks=[OPEN], decision="hold")


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    """One version served, the next held."""
    running.reset()
    add_version(running.settings, "actor-1")
    add_version(running.settings, "actor-2", "actor/actor-1", created=2.0)
    AliasStore(running.redis).promote("actor", "actor-1")
    GateRecords(running.redis, "line").enter("actor-2", "actor-1", HELD)
    return running


def test_held_candidates_are_listed_with_what_is_open(gateway: Gateway):
    """For those who may promote; chat keys are not told of candidates."""
    [held] = gateway[Scope.PROMOTE].get("/v1/models/held").json()["data"]

    assert (held["candidate"], held["parent"], held["decided"]) == ("actor-2", "actor-1", None)
    assert held["verdict"]["checks"][0]["open"] is True
    error_of(gateway[Scope.CHAT].get("/v1/models/held"), 403)


def test_a_person_promotes_a_held_candidate(gateway: Gateway):
    """It is served from then on, no longer waits, and the key that said so is on record."""
    promoter, key_id = gateway.key(Scope.PROMOTE)
    headers = {"authorization": f"Bearer {promoter}"}

    reply = gateway[None].post("/v1/models/actor-2/promote", json={"note": "read them"}, headers=headers)

    assert reply.json()["decided"] | {"when": 0} == {
        "decision": "promote",
        "by": key_id,
        "when": 0,
        "note": "read them",
    }
    assert AliasStore(gateway.redis).all("actor") == {"current": "actor-2", "previous": "actor-1"}
    assert gateway[Scope.PROMOTE].get("/v1/models/held").json()["data"] == []
    error_of(gateway[Scope.PROMOTE].post("/v1/models/actor-2/reject", json={}), 409)


def test_a_person_rejects_a_held_candidate(gateway: Gateway):
    """Nothing is served anew."""
    reply = gateway[Scope.PROMOTE].post("/v1/models/actor-2/reject", json={})

    assert reply.json()["decided"]["decision"] == "reject"
    assert AliasStore(gateway.redis).get("actor") == "actor-1"
    error_of(gateway[Scope.PROMOTE].post("/v1/models/actor-2/promote", json={}), 409)


def test_what_was_not_held_is_not_decided_here(gateway: Gateway):
    """A version without a verdict, one that is not in the store, and one that would replace another than thought."""
    promoter = gateway[Scope.PROMOTE]
    add_version(gateway.settings, "actor-3", created=3.0)

    error_of(promoter.post("/v1/models/actor-1/promote", json={}), 404)
    error_of(promoter.post("/v1/models/actor-9/promote", json={}), 404)
    AliasStore(gateway.redis).promote("actor", "actor-3")
    moved = error_of(promoter.post("/v1/models/actor-2/promote", json={}), 409)
    assert "'actor-3' is current now" in moved["message"]
    assert promoter.post("/v1/models/actor-2/promote", json={"replaces": "actor-3"}).status_code == 200


def test_a_reply_leads_to_the_pairs_of_its_version(gateway: Gateway):
    """By the version's name, by the reply's fingerprint, or by the alias."""
    reader = gateway[Scope.JOBS_READ]
    checksum = ModelStore(gateway.settings.models).checksum("actor", "actor-1")

    by_name = reader.get("/v1/lineage/versions/actor/actor-1").json()

    assert (by_name["name"], by_name["lineage"], by_name["pairs"]) == ("actor-1", "line", [])
    assert reader.get(f"/v1/lineage/versions/actor/fp_{checksum[:12]}").json() == by_name
    assert reader.get("/v1/lineage/versions/actor/vc-llm").json() == by_name
    held = reader.get("/v1/lineage/versions/actor/actor-2").json()
    assert (held["gate"]["verdict"]["decision"], held["parents"]) == ("hold", ["actor/actor-1"])
    error_of(reader.get("/v1/lineage/versions/actor/actor-9"), 404)
    error_of(reader.get("/v1/lineage/versions/king/actor-1"), 400)


def test_a_pair_leads_to_who_made_it(gateway: Gateway):
    """By the beginning of its id; asking for what is not there makes nothing."""
    reader = gateway[Scope.JOBS_READ]
    PairStream(gateway.redis, "line").add(pair(1))

    trace = reader.get(f"/v1/lineage/pairs/line/{pair(1).id[:10]}").json()

    assert (trace["id"], trace["state"]) == (pair(1).id, "waiting")
    assert trace["pair"]["provenance"]["attacker"] == "attacker-1"
    before = set(gateway.redis.keys())
    error_of(reader.get("/v1/lineage/pairs/other/abcdef01"), 404)
    error_of(reader.get("/v1/lineage/pairs/line/abc"), 400)
    assert set(gateway.redis.keys()) == before
