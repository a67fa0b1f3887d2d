"""Whatever changes something at the gateway is in the audit log before its reply is sent, or is not done."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from redis import Redis

from gateway.anchors import AnchorKeeper
from gateway.app import create_app
from gateway.audit import NOT_ENTERED, READ_ONLY, READS_ENTERED, REFUSALS_A_MINUTE, Thinning
from gateway.auth import scopes_by_route
from gateway.first_key import first_key_file, make_first_key
from tests.fake_actor import FakeActor
from tests.gateway_world import PEPPER, Gateway, add_version, chat_body, create_job, error_of, gateway_on
from tests.servers import RedisServer, serve, serve_redis, wait_until
from vcllm.contracts.audit import Anchor, AuditEntry, parse_anchor
from vcllm.contracts.keys import Scope
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_copy import copy_of, end_of_copy
from vcllm.stores.connect import AUDIT, FIRST_KEY


def entries(gateway: Gateway) -> list[AuditEntry]:
    """Oldest first."""
    return [AuditEntry.model_validate_json(line) for line in AuditLog(gateway.redis).lines()]


def rows(gateway: Gateway) -> list[tuple[str, str | None, str, int | None]]:
    return [(entry.action, entry.target, entry.outcome.value, entry.status) for entry in entries(gateway)]


def routes_entered(settings: Settings) -> list[tuple[str, str]]:
    """Method and template of every route that has to leave an entry."""
    named = [route.split() for route in scopes_by_route(create_app(settings))]
    found = [(method, path) for methods, path in named for method in methods.split("/")]
    return [
        (method, path)
        for method, path in found
        if (method not in READ_ONLY and path not in NOT_ENTERED) or (method == "GET" and path in READS_ENTERED)
    ]


# What is entered.


def test_every_route_that_changes_something_leaves_entries(gateway: Gateway):
    """All routes are walked; one that is added is among them, and needs no thought of this."""
    admin = gateway[Scope.ADMIN]
    walked = routes_entered(gateway.settings)
    assert len(walked) > 15
    for method, path in walked:
        before = len(entries(gateway))
        reply = admin.request(method, path.replace("{", "").replace("}", ""), json={})

        new = entries(gateway)[before:]
        assert [entry.action for entry in new] == [f"{method} {path}"] * 2, (method, path, reply.text)
        assert [entry.outcome == "begun" for entry in new] == [True, False]
        assert new[1].status == reply.status_code
        assert new[1].of == new[0].seq
    assert AuditLog(gateway.redis).check().fault is None


def test_an_entry_says_who_did_what_to_what(gateway: Gateway):
    """With the ids that the reply's header, the logs and the trace have."""
    key, key_id = gateway.key(Scope.JOBS_WRITE)
    trace = "0af7651916cd43dd8448eb211c80319c"
    told = {"authorization": f"Bearer {key}", "x-request-id": "req-7", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    reply = gateway[None].post("/v1/jobs", json={"recipe": "tiny"}, headers=told)
    assert reply.status_code == 201, reply.text
    made = reply.json()["id"]
    gateway[None].post(f"/v1/jobs/{made}/cancel", headers=told)

    assert rows(gateway) == [
        ("POST /v1/jobs", None, "begun", None),
        ("POST /v1/jobs", made, "done", 201),
        ("POST /v1/jobs/{job_id}/cancel", made, "begun", None),
        ("POST /v1/jobs/{job_id}/cancel", made, "done", 200),
    ]
    for entry in entries(gateway):
        assert (entry.actor, entry.request, entry.trace) == (key_id, "req-7", trace)
        assert abs(entry.time - time.time()) < 60


def test_a_key_is_entered_by_its_id_and_never_itself(gateway: Gateway):
    """Made, and then revoked by somebody who pastes the whole key into the address."""
    made = gateway[Scope.ADMIN].post("/v1/keys", json={"name": "team", "scopes": ["chat"]}).json()
    gateway[Scope.ADMIN].delete(f"/v1/keys/{made['key']}")
    gateway[Scope.ADMIN].delete(f"/v1/keys/{made['id']}")

    ends = [row for row in rows(gateway) if row[2] != "begun"]
    assert [(target, outcome) for _, target, outcome, _ in ends] == [
        (made["id"], "done"),
        ("(not an id)", "refused"),
        (made["id"], "done"),
    ]
    assert made["key"].encode() not in b"".join(AuditLog(gateway.redis).lines())


def test_a_rollback_names_the_version(gateway: Gateway):
    """Which is what anybody would look for."""
    for version in ("v1", "v2"):
        add_version(gateway.settings, version)
        AliasStore(gateway.redis).promote("actor", version)
    gateway[Scope.PROMOTE].post("/v1/models/rollback", json={})

    assert rows(gateway)[-1] == ("POST /v1/models/rollback", "v1", "done", 200)


def test_what_was_refused_by_a_route_is_entered_as_refused(gateway: Gateway):
    """A wrong body, and a thing that is not there."""
    gateway[Scope.JOBS_WRITE].post("/v1/jobs", json={"recipe": 3})
    gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel")

    assert [row[2:] for row in rows(gateway) if row[2] != "begun"] == [("refused", 400), ("refused", 404)]


def test_chat_and_ordinary_reads_are_not_entered(gateway: Gateway):
    """They change nothing, and there are too many."""
    gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body())
    gateway[Scope.CHAT].get("/v1/models")
    gateway[Scope.JOBS_READ].get("/v1/jobs")

    assert entries(gateway) == []


# Who was refused.


def test_a_refused_scope_is_entered_with_the_key(gateway: Gateway):
    """Also of chat, and of what only reads; the template is told, not the address."""
    key, key_id = gateway.key(Scope.CHAT)
    headers = {"authorization": f"Bearer {key}"}
    gateway[None].get("/v1/jobs/job-1", headers=headers)
    gateway[Scope.REVIEW].post("/v1/chat/completions", json=chat_body())

    wait_until(lambda: len(entries(gateway)) == 2)
    found = {entry.action: entry for entry in entries(gateway)}
    assert found["GET /v1/jobs/{job_id}"].actor == key_id
    assert {(entry.outcome.value, entry.status, entry.of) for entry in found.values()} == {("refused", 403, None)}
    assert "POST /v1/chat/completions" in found


def test_failed_logins_are_entered_a_few_a_minute(gateway: Gateway):
    """Whoever tries keys by the thousand does not fill the log; the key that was tried is not in it."""
    tried = f"vck_00000000_{'a' * 43}"
    for _ in range(REFUSALS_A_MINUTE + 15):
        gateway[None].get("/v1/models", headers={"authorization": f"Bearer {tried}"})

    wait_until(lambda: entries(gateway))
    time.sleep(0.2)
    found = entries(gateway)
    assert 1 <= len(found) <= 2 * REFUSALS_A_MINUTE
    assert {(entry.actor, entry.outcome.value, entry.status) for entry in found} == {(None, "refused", 401)}
    assert tried not in "".join(entry.model_dump_json() for entry in found)


def test_what_is_withheld_is_counted_for_the_next_one():
    """A minute later; each name for itself."""
    now = [0.0]
    thin = Thinning(2, clock=lambda: now[0])
    first = [thin.admit("a") for _ in range(5)]
    other = thin.admit("b")
    now[0] = 61.0

    assert first == [0, 0, None, None, None]
    assert other == 0
    assert [thin.admit("a"), thin.admit("a"), thin.admit("a")] == [3, 0, None]


# Fail closed.


def test_nothing_is_done_that_cannot_be_entered(gateway: Gateway):
    """A damaged log: jobs and administration stop with a sentence, chat goes on."""
    gateway.redis.set(AUDIT, "no stream")  # as if somebody had written over it
    try:
        refused = gateway[Scope.ADMIN].post("/v1/keys", json={"name": "team", "scopes": ["chat"]})
        job = create_job(gateway)
        chat = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body())
        reading = gateway[Scope.JOBS_READ].get("/v1/jobs")
    finally:
        gateway.redis.delete(AUDIT)

    for reply in (refused, job):
        assert "nothing was done" in error_of(reply, 503)["message"]
        assert reply.headers["retry-after"] == "5"
    assert (chat.status_code, reading.status_code) == (200, 200)
    assert gateway.jobs.recent() == []
    assert "team" not in [record.name for record in KeyStore(gateway.redis, PEPPER).all()]


def test_a_log_that_was_changed_takes_nothing(gateway: Gateway):
    """Entries behind the head are another's: the sentence says what to do."""
    gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel")
    gateway.redis.xadd(AUDIT, {"entry": "{}"}, id="3-0")

    reply = create_job(gateway)

    assert "vcllm audit verify" in error_of(reply, 503)["message"]


def test_redis_away_stops_jobs_and_not_chat(tmp_path: Path):
    """Fail closed for what changes something, also for a key that is still remembered; chat needs no Redis."""
    with (
        serve_redis(tmp_path) as redis,
        gateway_on(redis.url, tmp_path, FakeActor()) as gateway,
    ):
        both, _ = gateway.key(Scope.CHAT, Scope.JOBS_WRITE)
        headers = {"authorization": f"Bearer {both}"}
        with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
            assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
            redis.process.kill()
            redis.process.wait()
            job = client.post("/v1/jobs", json={"recipe": "tiny"})
            chat = client.post("/v1/chat/completions", json=chat_body())

    assert job.status_code == 503
    assert chat.status_code == 200


# Reading it.


def anchors_told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "gateway.anchors"]


def test_administrators_read_it_in_pages(gateway: Gateway):
    """Newest first; that it is read is in it, too; nobody else may."""
    for _ in range(3):
        gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel")
    error_of(gateway[Scope.REVIEW].get("/v1/audit"), 403)

    page = gateway[Scope.ADMIN].get("/v1/audit", params={"limit": 4}).json()
    older = gateway[Scope.ADMIN].get("/v1/audit", params={"limit": 100, "before": page["before"]}).json()

    assert page["data"][0]["action"] == "GET /v1/audit"
    assert page["data"][0]["outcome"] == "begun"
    assert [row["seq"] for row in older["data"]] == list(range(page["before"] - 1, 0, -1))
    assert older["before"] is None
    assert AuditLog(gateway.redis).check(Anchor.model_validate(page["anchor"])).fault is None


def test_anchors_are_told_in_the_log_and_a_copy_is_kept(
    gateway: Gateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Once for each new end; a log that was made anew is told as an error."""
    caplog.set_level(logging.INFO, "gateway.anchors")
    keeper = AnchorKeeper(AuditLog(gateway.redis), copy_of(tmp_path))
    gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel")
    keeper.note()
    keeper.note()
    [told] = anchors_told(caplog)
    assert parse_anchor(told.removeprefix("Audit anchor ")) == end_of_copy(copy_of(tmp_path))

    gateway.reset()
    gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel")
    keeper.note()

    assert any("changed or cut" in message for message in anchors_told(caplog))


def test_where_no_copy_can_be_kept_the_anchors_remain(
    gateway: Gateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A container's folder is read-only: it is said once."""
    caplog.set_level(logging.INFO, "gateway.anchors")
    (tmp_path / "audit").write_text("in the way")
    keeper = AnchorKeeper(AuditLog(gateway.redis), copy_of(tmp_path))
    gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel")

    keeper.note()

    first, second = anchors_told(caplog)
    assert first.startswith("Audit anchor 2:")
    assert "is not copied to" in second


# The first key.


@contextmanager
def started(redis: RedisServer, home: Path) -> Iterator[str]:
    settings = Settings(redis_url=redis.url, home=home, internal_token=SecretStr("internal"), pepper=PEPPER)
    with serve(create_app(settings)) as url:
        yield url


def test_the_first_start_leaves_an_admin_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """It works, only its owner may read it, and it is not in what is printed."""
    with serve_redis(tmp_path) as redis, started(redis, tmp_path / "home") as url:
        file = first_key_file(tmp_path / "home")
        key = file.read_text()
        reply = httpx.get(f"{url}/v1/keys", headers={"authorization": f"Bearer {key}"})
        with Redis.from_url(redis.url, decode_responses=True) as client:
            dump = "".join(str(client.hgetall("vcllm:keys")))
            log = [AuditEntry.model_validate_json(line) for line in AuditLog(client).lines()]

    [record] = reply.json()["data"]
    assert record["scopes"] == ["admin"]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    printed = "".join(capfd.readouterr())
    assert str(file) in printed and key not in printed and key not in dump
    assert [(entry.actor, entry.action) for entry in log][:2] == [("gateway", "first key")] * 2


def test_a_later_start_makes_no_key(tmp_path: Path):
    """Nor does one where somebody made a key by hand."""
    with serve_redis(tmp_path) as redis:
        with started(redis, tmp_path / "home"):
            first = first_key_file(tmp_path / "home").read_text()
        with started(redis, tmp_path / "home"), started(redis, tmp_path / "other"):
            pass
        with Redis.from_url(redis.url, decode_responses=True) as client:
            assert len(KeyStore(client, PEPPER).all()) == 1

    assert first_key_file(tmp_path / "home").read_text() == first
    assert not first_key_file(tmp_path / "other").exists()


def test_gateways_that_start_at_once_make_one_key(redis_url: str, tmp_path: Path):
    """Eight of them, each with a connection of its own."""
    barrier = threading.Barrier(8)
    told: list[str | None] = []

    def start(number: int) -> None:
        with Redis.from_url(redis_url, decode_responses=True) as own:
            barrier.wait()
            told.append(make_first_key(KeyStore(own, PEPPER), tmp_path / "home"))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with Redis.from_url(redis_url, decode_responses=True) as client:
        [record] = KeyStore(client, PEPPER).all()
        assert KeyStore(client, PEPPER).find(first_key_file(tmp_path / "home").read_text()) == record
        assert not client.exists(FIRST_KEY)
    assert len([one for one in told if one]) == 1


def test_where_no_key_can_be_left_none_is_made(client: Redis, tmp_path: Path):
    """One line says how to make one: a key in nobody's hands would keep the next start from making another."""
    (tmp_path / "secrets").write_text("in the way")

    told = make_first_key(KeyStore(client, PEPPER), tmp_path)

    assert told is not None and "keys create NAME --scope admin" in told and "\n" not in told
    assert KeyStore(client, PEPPER).all() == []


def test_what_a_request_calls_itself_is_kept_within_its_charset(gateway: Gateway):
    """An id that could break a log line or a header is replaced, in the reply and in the audit log alike."""
    for sent in ("a b", "x" * 129, 'a"b', "a\\nb", "<b>", "ü"):
        headers = {"x-request-id": sent.encode("latin-1")}
        reply = gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel", headers=headers)  # type: ignore[arg-type]
        assert reply.headers["x-request-id"].startswith("req-")
        assert entries(gateway)[-1].request == reply.headers["x-request-id"]
    kept = gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-none/cancel", headers={"x-request-id": "my.id:7_a-b"})

    assert kept.headers["x-request-id"] == "my.id:7_a-b"


def test_entries_hold_nothing_but_what_the_contract_names(gateway: Gateway):
    """No body, no header, no address."""
    gateway[Scope.ADMIN].post("/v1/keys", json={"name": "canary-name", "scopes": ["chat"]})

    for line in AuditLog(gateway.redis).lines():
        assert set(json.loads(line)) == set(AuditEntry.model_fields)
        assert b"canary-name" not in line
