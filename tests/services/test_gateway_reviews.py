"""The review queue through the gateway: read, decided once, and approved pairs on their way to training."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway_world import Gateway, add_version, error_of
from tests.unit.test_stores_reviews import item
from vcllm.contracts.keys import Scope
from vcllm.stores.pairs import PairStream
from vcllm.stores.reviews import ReviewStore

ITEMS = [item(number, lineage) for number, lineage in enumerate(["one", "one", "two"])]
GOOD: dict[str, Any] = {"outcome": "consistent", "note": "It corrects the claim."}


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    """Two answers of one lineage wait, and one of another."""
    running.reset()
    for each in ITEMS:
        ReviewStore(running.redis, each.lineage).add(each)
    return running


def test_what_waits_is_listed_page_by_page(gateway: Gateway):
    """Longest waiting first, of one lineage or of all; `after` leads from page to page."""
    client = gateway[Scope.REVIEW]

    first = client.get("/v1/reviews", params={"limit": 2}).json()
    rest = client.get("/v1/reviews", params={"limit": 2, "after": first["after"]}).json()
    one = client.get("/v1/reviews", params={"lineage": "one"}).json()

    assert [row["id"] for row in first["data"] + rest["data"]] == [each.id for each in ITEMS]
    assert (first["waiting"], rest["after"]) == (3, None)
    assert [row["id"] for row in one["data"]] == [ITEMS[0].id, ITEMS[1].id]
    assert (one["waiting"], one["after"]) == (2, None)


def test_a_lineage_must_exist_to_have_a_queue(gateway: Gateway):
    """One with versions but nothing doubtful has an empty list; a name that is nobody's is a mistake."""
    add_version(gateway.settings, "actor-1")
    client = gateway[Scope.REVIEW]

    assert client.get("/v1/reviews", params={"lineage": "line"}).json()["data"] == []
    error = error_of(client.get("/v1/reviews", params={"lineage": "three"}), 404)
    assert error["message"].startswith("There is no lineage 'three'.")
    assert error["param"] == "lineage"


def test_a_person_approves_an_answer(gateway: Gateway):
    """It no longer waits, the key is on record, and its pair waits for the trainer of its lineage alone."""
    key, key_id = gateway.key(Scope.REVIEW)
    headers = {"authorization": f"Bearer {key}"}

    reply = gateway[None].post(f"/v1/reviews/{ITEMS[0].id}", json=GOOD, headers=headers)

    assert reply.status_code == 200
    assert (reply.json()["decision"], reply.json()["by"]) == (GOOD, key_id)
    [pair] = PairStream(gateway.redis, "one").entries().values()
    assert (pair.id, pair.source) == (reply.json()["pair"], "human")
    assert PairStream(gateway.redis, "two").waiting() == 0
    assert gateway[Scope.REVIEW].get("/v1/reviews").json()["waiting"] == 2
    assert gateway[Scope.REVIEW].get(f"/v1/reviews/{ITEMS[0].id[:12]}").json() == reply.json()


def test_a_decision_stands(gateway: Gateway):
    """Sent again it gives the same reply; another one is refused with who said what."""
    client, path = gateway[Scope.REVIEW], f"/v1/reviews/{ITEMS[0].id}"
    first = client.post(path, json={"outcome": "refusal"})

    again = client.post(path, json={"outcome": "refusal"})
    error = error_of(client.post(path, json=GOOD), 409)

    assert again.json() == first.json()
    assert first.json()["pair"] is None
    assert error["code"] == "already_decided"
    assert "was decided before: refusal, by key" in error["message"]
    assert PairStream(gateway.redis, "one").waiting() == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/reviews/" + "f" * 64, GOOD, 404, None),
        ("/v1/reviews/abc", GOOD, 400, "id"),
        (f"/v1/reviews/{ITEMS[0].id}", {"outcome": "unscored"}, 400, "outcome"),
        (f"/v1/reviews/{ITEMS[0].id}", {"outcome": "broken", "note": "x" * 2001}, 400, "note"),
        (f"/v1/reviews/{ITEMS[0].id}", {"outcome": "broken", "by": "me"}, 400, "by"),
    ],
)
def test_a_wrong_decision_is_named(gateway: Gateway, path: str, body: Any, status: int, param: str | None):
    """The field is pointed at, and the item still waits."""
    error = error_of(gateway[Scope.REVIEW].post(path, json=body), status)

    assert error["param"] == param
    assert gateway[Scope.REVIEW].get("/v1/reviews").json()["waiting"] == 3


def test_a_waiting_item_has_no_decision(gateway: Gateway):
    """The same form as a decided one, with nothing in it."""
    found = gateway[Scope.REVIEW].get(f"/v1/reviews/{ITEMS[0].id}").json()

    assert found["item"] == ITEMS[0].model_dump(mode="json")
    assert [found[name] for name in ("decision", "by", "decided", "pair")] == [None] * 4
    error_of(gateway[Scope.REVIEW].get("/v1/reviews/" + "f" * 64), 404)


@pytest.mark.parametrize("scope", [Scope.CHAT, Scope.JOBS_WRITE, Scope.PROMOTE, Scope.ATTACK])
def test_reviews_are_for_reviewers(gateway: Gateway, scope: Scope):
    """Attacks are read there, and training is steered: no other scope implies it but admin."""
    for reply in (gateway[scope].get("/v1/reviews"), gateway[scope].post(f"/v1/reviews/{ITEMS[0].id}", json=GOOD)):
        assert error_of(reply, 403)["code"] == "insufficient_scope"

    assert gateway[Scope.ADMIN].get("/v1/reviews").status_code == 200
