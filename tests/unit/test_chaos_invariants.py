"""Each invariant of the kill matrix finds the fault it is there for, and nothing where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import chaos_invariants as invariants
from benchmarks.chaos_chat import Reply, read_answer
from benchmarks.chaos_invariants import Books, Findings
from tests.gateway_world import add_version
from vcllm.contracts.attacks import Cell
from vcllm.contracts.audit import Deed, Outcome
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique
from vcllm.contracts.critiques import Outcome as CritiqueOutcome
from vcllm.contracts.jobs import Event, JobRecord, JobState
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.connect import AUDIT
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream


def version(name: str, number: int, pairs: list[str], replayed: list[str]) -> Manifest:
    facts: dict[str, Any] = {"files": {}, "recipe": {}, "recipe_hash": "r", "charter": "c", "dataset": "d"}
    facts |= {"lineage": "line", "stage": "preference", "format": "full", "token": 1, "job": "job-1"}
    return Manifest(role="actor", name=name, round=number, pairs=pairs, replayed=replayed, created=number, **facts)


@pytest.fixture
def books() -> Books:
    """Two rounds: pairs a and b, then c with a shown again. Nothing is wrong with it."""
    return Books(
        seen=frozenset("abc"),
        approved=("a", "b", "c"),
        used={"a": "r1", "b": "r1", "c": "r2"},
        num_dead=0,
        manifests=(version("r1", 1, ["a", "b"], []), version("r2", 2, ["c"], ["a"])),
    )


PAIR_INVARIANTS = (
    invariants.no_approved_pair_lost,
    invariants.no_pair_used_twice,
    invariants.no_unapproved_pair_used,
)


@pytest.mark.parametrize("invariant", PAIR_INVARIANTS)
def test_books_in_order_have_no_fault(books, invariant):
    assert invariant(books) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"approved": ("a", "b")}, "pair c was taken, but the stream does not hold it"),
        ({"seen": frozenset("ab")}, "pair c is in the stream, but was never taken"),
        ({"seen": frozenset("abcd"), "approved": ("a", "b", "c", "d")}, "pair d was approved, but no version learned"),
        ({"used": {"a": "r1", "b": "r1"}}, "pair c was learned, but the ledger does not say so"),
        ({"used": {"a": "r1", "b": "r1", "c": "r2", "d": "r2"}}, "the ledger has pair d, which no version learned"),
        ({"num_dead": 1}, "1 pairs were given up"),
    ],
)
def test_a_lost_pair_is_found(books, change, fault):
    """On its way into the stream, from it to a version, from that to the ledger; or acknowledged though not learned."""
    (found,) = invariants.no_approved_pair_lost(replace(books, **change))

    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"approved": ("a", "b", "c", "a")}, "pair a was approved 2 times"),
        (
            {"manifests": (version("r1", 1, ["a", "b"], []), version("r2", 2, ["c", "b"], []))},
            "pair b is new in r1, r2",
        ),
        ({"used": {"a": "r2", "b": "r1", "c": "r2"}}, "pair a is new in r1, but the ledger says r2"),
    ],
)
def test_a_pair_that_was_used_twice_is_found(books, change, fault):
    assert invariants.no_pair_used_twice(replace(books, **change)) == [fault]


@pytest.mark.parametrize(
    ("manifests", "fault"),
    [
        ((version("r1", 1, ["a", "x"], []),), "r1 learned pair x, not approved"),
        ((version("r1", 1, ["a"], ["b"]), version("r2", 2, ["b"], [])), "r1 replayed pair b, new to all"),
    ],
)
def test_a_pair_that_nobody_approved_is_found(books, manifests, fault):
    """Learned, or replayed before any version had learned it."""
    assert invariants.no_unapproved_pair_used(replace(books, manifests=manifests)) == [fault]


def test_the_books_are_read_from_stream_ledger_and_store(client, tmp_path):
    """A pair that waits for ever is one that was lost."""
    pair = Pair(
        kind="attack",
        cell=Cell(subdomain="pol.rights", tactic="direct", language=Language.EN),
        card="pol.rights-vote",
        goal=0,
        query="Who may vote?",
        chosen="Every citizen.",
        chosen_critique=Critique(outcome=CritiqueOutcome.CONSISTENT, score=0.9),
        provenance=Provenance(
            attacker="a1", actor="m1", critic="c1", charter="c", template="t", lineage="line", round=1, trace="r"
        ),
    )
    PairStream(client, "line").add(pair)
    books = invariants.read_books(client, ModelStore(tmp_path), "line")

    assert books.seen == {pair.id}
    assert books.approved == (pair.id,)
    assert invariants.no_approved_pair_lost(books) == [f"pair {pair.id} was approved, but no version learned it"]


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path, redis_url="redis://nowhere")


def test_an_alias_on_a_whole_version_is_in_order(client, settings):
    add_version(settings, "v1")
    AliasStore(client).promote("actor", "v1")

    assert invariants.aliases_on_whole_versions(client, ModelStore(settings.models)) == []


def test_an_alias_on_a_missing_or_damaged_version_is_found(client, settings):
    store = ModelStore(settings.models)
    add_version(settings, "v1")
    AliasStore(client).promote("actor", "v1")
    (store.path("actor", "v1") / "model.safetensors").write_bytes(b"half")
    AliasStore(client).promote("critic", "gone")
    faults = invariants.aliases_on_whole_versions(client, store)

    assert [fault.partition(":")[0] for fault in faults] == [
        "actor current leads to v1",
        "critic current leads to gone",
    ]


@pytest.mark.parametrize(("state", "num_faults"), [("succeeded", 0), ("failed", 1), ("running", 1), ("cancelled", 1)])
def test_a_job_that_did_not_succeed_is_found(state, num_faults):
    record = JobRecord(
        id="job-1", kind="pipeline", queue="rollouts", state=JobState(state), request={}, created=1.0, error="No."
    )

    assert len(invariants.job_succeeded(record)) == num_faults


def told(*rows: tuple[str, str]) -> list[Event]:
    return [Event(id=id, type="state", time=1.0, data={"state": state}) for id, state in rows]


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        (told(("1-0", "queued"), ("2-0", "succeeded")), None),
        (told(("1-0", "queued"), ("1-0", "queued"), ("2-0", "succeeded")), "came twice"),
        (told(("3-0", "queued"), ("2-0", "succeeded")), "out of order"),
        (told(("1-0", "queued"), ("2-0", "running")), "the last state"),
        ([], "the last state"),
    ],
)
def test_events_that_are_not_whole_are_found(events, fault):
    faults = invariants.events_whole(events)

    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


def test_a_changed_audit_entry_is_found(client):
    log = AuditLog(client)
    for action in ("one", "two"):
        log.append(Deed(actor="key-1", action=action, target=None, outcome=Outcome.DONE))
    sound = invariants.audit_chain_whole(client)
    (first, fields), *_ = client.xrange(AUDIT)
    client.xdel(AUDIT, first)
    cut = invariants.audit_chain_whole(client)

    assert sound == []
    assert len(cut) == 1 and cut[0].startswith("audit entry 1")
    assert "one" in json.loads(fields["entry"])["action"]


GOOD = Reply(10.0, 11.0, 200, False, "At the harbour.", "v1", None, True)


@pytest.mark.parametrize(
    ("reply", "num_faults"),
    [
        (GOOD, 0),
        (replace(GOOD, version="v2"), 1),
        (replace(GOOD, version=""), 1),
        (replace(GOOD, ended=4.0), 1),
        (replace(GOOD, status=503, version="v2"), 0),
    ],
)
def test_an_answer_of_a_version_that_did_not_exist_is_found(reply, num_faults):
    """v1 was promoted at 5."""
    assert len(invariants.replies_name_versions_that_existed([reply], {"v1": 5.0})) == num_faults


REFUSED = Reply(10.0, 11.0, 503, False, "", retry_after="5", error="Not now.")
BROKEN = Reply(10.0, 11.0, 0, False, "", error="RemoteProtocolError")
CUT = replace(GOOD, streamed=True, finished=False)


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (GOOD, None),
        (REFUSED, None),
        (replace(REFUSED, status=502), None),
        (replace(REFUSED, retry_after=None), "does not say when to come back"),
        (replace(REFUSED, status=500), "status 500"),
        (replace(REFUSED, status=404), "status 404"),
        (replace(GOOD, text=""), "an answer is empty"),
        (replace(GOOD, version=""), "names no version"),
        (replace(GOOD, finished=False), "ends without saying so"),
        (replace(GOOD, finished=False, gateway_was_killed=True), "ends without saying so"),
        (CUT, "ends without saying so"),
        (replace(CUT, error="The answer broke off."), None),
        (replace(CUT, gateway_was_killed=True), None),
        (BROKEN, "the gateway broke off"),
        (replace(BROKEN, gateway_was_killed=True), None),
    ],
)
def test_a_chat_that_fails_uncleanly_is_found(reply, fault):
    """Wrong, empty or cut off without a word; a broken connection is excused only when the gateway itself is killed."""
    faults = invariants.chat_failed_cleanly([reply])

    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


def frames(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


SAID = {"choices": [{"delta": {"content": "Hello"}, "finish_reason": None}]}
ENDED = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (frames(SAID, ENDED) + DONE, ("Hello", True, "")),
        (b": queued\n\n" + frames(SAID, ENDED) + DONE, ("Hello", True, "")),
        (frames(SAID, ENDED), ("Hello", False, "")),
        (frames(SAID) + DONE, ("Hello", False, "")),
        (frames(SAID) + b'data: {"cho', ("Hello", False, "")),
        (frames(SAID, {"error": {"message": "Gone."}}) + DONE, ("Hello", False, "Gone.")),
        (b"", ("", False, "")),
    ],
)
def test_a_stream_is_finished_only_with_its_reason_and_its_end(raw, read):
    assert read_answer(raw, streamed=True) == read


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}', ("Hi", True, "")),
        (b'{"choices":[{"message":{"content":"Hi"},"fin', ("", False, "")),
        (b'{"choices":[]}', ("", False, "")),
        (b"[]", ("", False, "")),
    ],
)
def test_half_a_reply_is_not_finished(raw, read):
    assert read_answer(raw, streamed=False) == read


def test_an_invariant_that_cannot_be_checked_does_not_hold():
    findings = Findings()
    findings.look(invariants.no_pair_used_twice, None)

    assert "it could not be checked: AttributeError" in str(findings)
