"""The gateway on a real socket, with a real Redis and an Actor that has no model."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis

from gateway.__main__ import main
from gateway.app import create_app
from gateway.auth import OPEN_PATHS, refuse_open_routes, scopes_by_route
from gateway.lookups import Lookups
from gateway.settings import GatewaySettings
from tests.fake_actor import QUEUE_MS, WORDS, FakeActor
from tests.gateway_world import (
    PEPPER,
    BrokenQueue,
    Gateway,
    add_version,
    chat_body,
    create_job,
    error_of,
    gateway_on,
    queued_messages,
    sdk,
)
from tests.servers import RedisServer, free_port, serve, serve_redis, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.jobs import RUN_JOB, JobRecord, JobRequest, JobState
from vcllm.contracts.keys import Scope
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.problems import Unauthenticated
from vcllm.contracts.servers import ServerReport
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.connect import job_key, server_key
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream
from vcllm.stores.servers import ServerStore
from vcllm.web.tokens import Verifier, scrape_token

# Doors


def test_every_route_asks_for_a_scope(gateway: Gateway):
    """Health alone is open; what a route asks for is what its place in the API says."""
    app = create_app(gateway.settings)
    scopes = scopes_by_route(app)

    assert len(scopes) > 15
    assert {route.split()[1] for route, needed in scopes.items() if not needed} == OPEN_PATHS
    assert scopes["POST /v1/chat/completions"] == {"chat"}
    assert scopes["POST /v1/keys"] == scopes["GET /metrics"] == {"admin"}


def test_an_open_route_keeps_the_app_from_being_made():
    """Whoever adds a route has to say who may use it."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.get("/v1/anything")(lambda: None)

    with pytest.raises(AssertionError, match="GET /v1/anything"):
        refuse_open_routes(app)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic dXNlcg==", "Bearer vck_", "Bearer " + "x" * 3000, "Bearer vck_00000000_' OR 1=1 --"]
    + [f"Bearer vck_{'0' * 8}_{'a' * 43}", "Bearer \xff\xfe", "vck_00000000_a"],
)
def test_any_wrong_authorization_is_401(gateway: Gateway, header: str):
    """Whatever is in the header, there is one answer."""
    reply = gateway[None].get("/v1/models", headers={"authorization": header.encode("latin-1")})

    error_of(reply, 401)
    assert reply.headers["www-authenticate"] == "Bearer"


def test_keys_that_share_a_beginning_do_not_share_rights(gateway: Gateway):
    """The cache knows whole keys: one that differs in its last character is unknown."""
    key, _ = gateway.key(Scope.CHAT)
    assert gateway[None].get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200

    for end in "AB":
        wrong = {"authorization": f"Bearer {key[:-1]}{end}"}
        if not key.endswith(end):
            error_of(gateway[None].get("/v1/models", headers=wrong), 401)


def test_an_admin_makes_and_revokes_keys(gateway: Gateway):
    """The key is shown once; revoked, it stops working here at once although it was cached."""
    made = gateway[Scope.ADMIN].post("/v1/keys", json={"name": "team", "scopes": ["chat"], "ttl_s": 60})
    assert made.status_code == 201
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    assert gateway[None].get("/v1/models", headers=headers).status_code == 200

    listed = gateway[Scope.ADMIN].get("/v1/keys")
    assert made.json()["key"] not in listed.text
    assert made.json()["id"] in [row["id"] for row in listed.json()["data"]]
    assert gateway[Scope.ADMIN].delete(f"/v1/keys/{made.json()['id']}").json()["revoked"] is True

    error_of(gateway[None].get("/v1/models", headers=headers), 401)
    error_of(gateway[Scope.ADMIN].delete(f"/v1/keys/{made.json()['id']}"), 404)


def test_a_key_with_an_unknown_scope_is_not_made(gateway: Gateway):
    """The field is named."""
    reply = gateway[Scope.ADMIN].post("/v1/keys", json={"name": "team", "scopes": ["everything"]})

    assert error_of(reply, 400)["param"] == "scopes.0"


def test_metrics_are_for_admins_and_services(gateway: Gateway):
    """With a key that may, or with the scrape token; they tell which replicas are up."""
    error_of(gateway[Scope.CHAT].get("/metrics"), 403)
    gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body())

    token = scrape_token(SecretStr("internal"))
    by_token = gateway[None].get("/metrics", headers={"authorization": f"Bearer {token}"})

    assert gateway[Scope.ADMIN].get("/metrics").status_code == by_token.status_code == 200
    assert 'vc_requests_total{code="200",role="gateway",route="/v1/chat/completions"}' in by_token.text
    assert 'vc_upstream_up{replica="' in by_token.text


# Chat


def test_a_chat_is_answered_and_stamped(gateway: Gateway):
    """With who answered, through which replica, under which id, and what the gateway took of the time."""
    reply = gateway[Scope.CHAT].post(
        "/v1/chat/completions", json=chat_body(user="u-1"), headers={"x-request-id": "trace-7"}
    )

    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "".join(WORDS)
    assert reply.headers["x-vc-version"] == "actor-2"
    assert reply.headers["x-request-id"] == "trace-7"
    assert len(reply.headers["x-vc-replica"]) == 8
    assert 0 <= float(reply.headers["x-vc-overhead-ms"]) < 1000
    assert reply.headers["x-vc-queue-ms"] == QUEUE_MS
    body, headers = gateway.actor.seen[-1]
    assert body == chat_body()
    Verifier(SecretStr("internal"), "actor").check(headers["authorization"].removeprefix("Bearer "))
    assert "internal" not in headers["authorization"]
    assert headers["x-request-id"] == "trace-7"


def test_a_stream_is_relayed_byte_for_byte(gateway: Gateway):
    """The gateway adds nothing to it and takes nothing away."""
    direct = httpx.post(
        f"{gateway.settings.actor_urls}/v1/chat/completions",
        json=chat_body(stream=True),
        auth=ServiceAuth("internal", "actor", "gateway"),
    )

    relayed = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(stream=True))

    assert relayed.content == direct.content
    assert relayed.content.endswith(b"data: [DONE]\n\n")
    assert relayed.headers["content-type"].startswith("text/event-stream")
    assert relayed.headers["x-vc-version"] == "actor-2"


def test_the_openai_sdk_works_unchanged(gateway: Gateway):
    """Plain, streamed, and the list of models."""
    AliasStore(gateway.redis).promote("actor", "actor-2")
    with sdk(gateway) as client:
        plain = client.chat.completions.create(**chat_body(model="vc-llm"))
        stream = client.chat.completions.create(**chat_body(model="vc-llm"), stream=True)
        chunks = list(stream)
        listed = [model.id for model in client.models.list()]

    assert plain.choices[0].message.content == "".join(WORDS)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(WORDS)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert listed == ["vc-llm"]


def test_the_openai_sdk_sees_a_stream_break(gateway: Gateway):
    """An Actor that fails midway: the SDK raises, and gets no end of a good answer."""
    with sdk(gateway) as client:
        stream = client.chat.completions.create(**chat_body("break", model="vc-llm"), stream=True)
        received = []
        with pytest.raises(openai.APIError):
            for chunk in stream:
                received.append(chunk.choices[0].delta.content)

    assert received == ["", "你好", ", "]


def test_a_killed_actor_breaks_a_stream_honestly(redis_url: str, tmp_path: Path):
    """It dies in the middle of a frame: the client gets whole frames, then the error, no `[DONE]`."""

    def half_a_frame(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while b"hello" not in connection.recv(65536):
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for chunk in (b'data: {"a": 1}\n\n', b'data: {"b'):
                connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            time.sleep(0.1)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        gateway_on(redis_url, tmp_path, FakeActor()) as gateway,
    ):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = gateway.settings.model_copy(update={"actor_urls": url})
        dying = threading.Thread(target=half_a_frame, args=(listener,))
        dying.start()
        with serve(create_app(settings)) as second:
            headers = gateway[Scope.CHAT].headers
            reply = httpx.post(f"{second}/v1/chat/completions", json=chat_body(stream=True), headers=headers)
        dying.join()

    first, error = reply.text.strip().split("\n\n")
    assert first == 'data: {"a": 1}'
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "upstream_failed"


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("full", 429, "rate_limit_exceeded"),
        ("refuse", 400, "context_length_exceeded"),
        ("bug", 502, "internal_error"),
        ("page", 502, "upstream_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_actor_reaches_the_client(gateway: Gateway, text: str, status: int, code: str, stream: bool):
    """Its own words where it has some, 502 for what is not the client's doing."""
    reply = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(text, stream=stream))

    assert error_of(reply, status)["code"] == code
    assert "canary-secret" not in reply.text
    assert (reply.headers.get("retry-after") == "3") is (text == "full")


def test_no_actor_is_503(gateway: Gateway):
    """With a time to come back."""
    settings = gateway.settings.model_copy(update={"actor_urls": f"http://127.0.0.1:{free_port()}"})
    with serve(create_app(settings)) as url:
        reply = httpx.post(f"{url}/v1/chat/completions", json=chat_body(), headers=gateway[Scope.CHAT].headers)

    assert error_of(reply, 503)["code"] == "unavailable"
    assert reply.headers["retry-after"] == "2"


def test_a_wrong_internal_token_is_not_the_clients_fault(redis_url: str, tmp_path: Path):
    """401 would send the client looking for a fault in its own key."""
    with gateway_on(redis_url, tmp_path, FakeActor(token="another")) as gateway:
        reply = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body())

    assert "internal token" in error_of(reply, 502)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_actor_stops_when_the_client_goes_away(gateway: Gateway, stream: bool):
    """Through both hops, within a second, in both modes."""
    with pytest.raises(httpx.ReadTimeout):
        gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body("slow", stream=stream), timeout=0.5)

    assert gateway.actor.begun == 1
    wait_until(lambda: gateway.actor.cancelled == 1, timeout_s=1)
    again = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(stream=stream))
    assert again.status_code == 200


def test_too_many_chats_are_refused_with_a_time(redis_url: str, tmp_path: Path):
    """The one that has no room is told so at once, and the room is free again after the client has gone."""
    limits = GatewaySettings(max_chats=1)
    with (
        gateway_on(redis_url, tmp_path, FakeActor(), limits=limits) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        chat = gateway[Scope.CHAT]
        waiting = pool.submit(chat.post, "/v1/chat/completions", json=chat_body("slow"), timeout=0.7)
        wait_until(lambda: gateway.actor.begun == 1)

        refused = gateway[Scope.ADMIN].post("/v1/chat/completions", json=chat_body())

        error_of(refused, 429)
        assert int(refused.headers["retry-after-ms"]) > 0
        assert isinstance(waiting.exception(), httpx.ReadTimeout)
        wait_until(lambda: chat.post("/v1/chat/completions", json=chat_body()).status_code == 200, 2)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        (chat_body(temperature=3), "temperature"),
        (chat_body(frequency_penalty=1), "frequency_penalty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ],
)
def test_a_wrong_chat_request_names_its_field(gateway: Gateway, body: dict[str, Any], param: str):
    """And reaches no Actor."""
    reply = gateway[Scope.CHAT].post("/v1/chat/completions", json=body)

    assert error_of(reply, 400)["param"] == param
    assert gateway.actor.seen == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\\ud800"', b"[" * 5000, b'{"messages": "\\ud800"}', b"\xff"])
def test_what_is_no_chat_request_is_refused(gateway: Gateway, body: bytes):
    """Never a 500."""
    headers = {"content-type": "application/json"}
    reply = gateway[Scope.CHAT].post("/v1/chat/completions", content=body, headers=headers)

    error_of(reply, 400)


def test_candidates_are_not_served_to_users(gateway: Gateway):
    """A chat key reaches what was promoted; a key that may promote reaches every version."""
    aliases = AliasStore(gateway.redis)
    for version in ("actor-1", "actor-2"):
        aliases.promote("actor", version)
    aliases.set("actor", "candidate", "actor-3")

    def ask(scope: Scope, model: str) -> httpx.Response:
        return gateway[scope].post("/v1/chat/completions", json=chat_body(model=model))

    for model in ("vc-llm", "actor-1", "actor-2"):
        assert ask(Scope.CHAT, model).status_code == 200
    assert error_of(ask(Scope.CHAT, "actor-3"), 404)["code"] == "model_not_found"
    assert ask(Scope.ADMIN, "actor-3").status_code == 200
    assert gateway.actor.seen[-1][0]["model"] == "actor-3"
    both, _ = gateway.key(Scope.CHAT, Scope.PROMOTE)
    headers = {"authorization": f"Bearer {both}"}
    assert gateway[None].post("/v1/chat/completions", json=chat_body(model="actor-3"), headers=headers).is_success


def test_a_second_model_field_does_not_reach_a_candidate(gateway: Gateway):
    """What is checked is what is sent, however the request was written."""
    for first, second in (("vc-llm", "actor-3"), ("actor-3", "vc-llm")):
        body = f'{{"model": "{first}", "messages": [{{"role": "user", "content": "x"}}], "model": "{second}"}}'
        gateway[Scope.CHAT].post("/v1/chat/completions", content=body)

    assert {body["model"] for body, _ in gateway.actor.seen} == {"vc-llm"}


def test_nothing_said_and_no_secret_is_logged(gateway: Gateway, caplog: pytest.LogCaptureFixture):
    """Through good answers, refusals, failures and wrong requests, with everything logged that can be."""
    with caplog.at_level(logging.DEBUG):
        for text in ("canary-prompt", "full", "bug", "break"):
            gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(f"{text}"))
            gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(text, stream=True))
        gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body("canary-prompt", wrong="canary-prompt"))
    key = gateway[Scope.CHAT].headers["authorization"].removeprefix("Bearer ")

    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "canary-prompt" not in ours
    assert key not in caplog.text
    assert "Bearer internal" not in caplog.text


# Models


def test_models_show_where_they_come_from(gateway: Gateway):
    """The alias first, then what was promoted, newest first; candidates for those who may promote."""
    aliases = AliasStore(gateway.redis)
    for number, parent in ((1, None), (2, "actor-1"), (3, "actor-2")):
        add_version(gateway.settings, f"actor-{number}", parent, created=float(number))
    aliases.promote("actor", "actor-1")
    aliases.promote("actor", "actor-2")

    shown = gateway[Scope.CHAT].get("/v1/models").json()
    everything = gateway[Scope.ADMIN].get("/v1/models").json()

    assert [card["id"] for card in shown["data"]] == ["vc-llm", "actor-2", "actor-1"]
    assert shown["data"][0] | {"created": 2, "parent": "actor-2", "checksum": None} == shown["data"][0]
    assert shown["data"][1]["alias"] == ["current"]
    assert shown["data"][1]["parent"] == "actor-1"
    assert shown["data"][1]["checksum"] == ModelStore(gateway.settings.models).checksum("actor", "actor-2")
    assert [card["id"] for card in everything["data"]] == ["vc-llm", "actor-3", "actor-2", "actor-1"]
    assert gateway[Scope.CHAT].get("/v1/models/actor-1").json() == shown["data"][2]
    error_of(gateway[Scope.CHAT].get("/v1/models/actor-3"), 404)


def test_before_anything_is_promoted_there_is_no_model(gateway: Gateway):
    """An empty list, and a 404 for the alias."""
    assert gateway[Scope.CHAT].get("/v1/models").json()["data"] == []
    error_of(gateway[Scope.CHAT].get("/v1/models/vc-llm"), 404)


def test_one_call_goes_back(gateway: Gateway):
    """The version before is served again; what is no longer on disk cannot be gone back to."""
    aliases = AliasStore(gateway.redis)
    promoter = gateway[Scope.PROMOTE]
    error_of(promoter.post("/v1/models/rollback", json={"role": "actor"}), 409)
    aliases.promote("actor", "actor-1")
    aliases.promote("actor", "actor-2")
    gone = promoter.post("/v1/models/rollback", json={"role": "actor"})
    assert "no longer in the model store" in error_of(gone, 409)["message"]
    assert gone.headers["x-should-retry"] == "false"

    add_version(gateway.settings, "actor-1")
    back = promoter.post("/v1/models/rollback", json={"role": "actor"})

    assert back.json() == {"role": "actor", "current": "actor-1", "previous": "actor-2"}
    assert aliases.get("actor") == "actor-1"


def test_servers_say_what_they_serve_and_what_they_refuse(gateway: Gateway):
    """For those who may promote; a server is listed while it keeps reporting."""
    report = ServerReport(
        role="actor",
        server="host:8201",
        current="actor-1",
        checksum="ab",
        pending="actor-2",
        refused=True,
        reason="actor-2 is damaged.",
    )
    ServerStore(gateway.redis).put(report)

    shown = gateway[Scope.PROMOTE].get("/v1/servers").json()["data"]
    gateway.redis.delete(server_key("actor", "host:8201"))

    assert shown == [report.model_dump()]
    assert gateway[Scope.PROMOTE].get("/v1/servers").json() == {"data": []}
    error_of(gateway[Scope.CHAT].get("/v1/servers"), 403)


# Jobs


def test_a_job_is_stored_and_queued(gateway: Gateway):
    """The message for the trainer carries the job's id and nothing else, as JSON."""
    reply = create_job(gateway, seed=3)

    assert reply.status_code == 201
    record = JobRecord.model_validate(reply.json())
    assert (record.state, record.queue, record.kind) == (JobState.QUEUED, "rollouts", "pipeline")
    assert record.request == {"recipe": "tiny", "seed": 3, "stage": None, "lineage": None}
    assert gateway.jobs.get(record.id) == record
    (message,) = queued_messages(gateway.redis)
    assert message["headers"]["task"] == RUN_JOB
    assert message["content-type"] == "application/json"
    assert json.loads(base64.b64decode(message["body"]))[:2] == [[record.id], {}]


def test_a_dry_run_starts_nothing(gateway: Gateway):
    """It checks everything and says what would run."""
    whole = create_job(gateway, validate_only=True)
    one = create_job(gateway, validate_only=True, stage="round-1")

    assert whole.status_code == 200
    assert whole.json()["stages"][0] == "pretrain"
    assert one.json() == {"valid": True, "recipe": "tiny", "stages": ["round-1"]}
    assert gateway.jobs.recent() == []
    assert queued_messages(gateway.redis) == []


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"recipe": "huge"}, "recipe", "There are: tiny"),
        ({"stage": "round-2"}, "stage", "pretrain, sft, critic, attacker, round-1, control, report"),
        ({"recipe": "../../etc/passwd"}, "recipe", ""),
        ({"base": "http://example.org/model"}, "base", ""),
        ({"seed": -1}, "seed", ""),
    ],
)
def test_a_wrong_job_is_refused(gateway: Gateway, fields: dict[str, Any], param: str, says: str, dry: bool):
    """The same with and without a dry run, and nothing is stored."""
    error = error_of(create_job(gateway, **fields, validate_only=dry), 400)

    assert error["param"] == param
    assert says in error["message"]
    assert gateway.jobs.recent() == []


def test_an_idempotency_key_makes_one_job(gateway: Gateway):
    """The same request again gets the same job with 200; another one with the key is refused."""
    first, again = (create_job(gateway, key="once") for _ in range(2))
    conflict = create_job(gateway, key="once", seed=1)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(queued_messages(gateway.redis)) == 1
    assert error_of(conflict, 422)["code"] == "idempotency_conflict"
    assert conflict.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", ["", "a" * 129, "a b", "a\tb"])
def test_an_idempotency_key_is_short_and_printable(gateway: Gateway, key: str):
    """It becomes part of a name in the store."""
    assert error_of(create_job(gateway, key=key), 400)["param"] == "Idempotency-Key"


def test_a_job_that_cannot_be_queued_is_failed(redis_url: str, tmp_path: Path):
    """503 and a failed record; sent again with its key, or resumed, it is queued."""
    queue = BrokenQueue()
    with gateway_on(redis_url, tmp_path, FakeActor(), queue=queue) as gateway:
        error_of(create_job(gateway, key="once"), 503)
        error_of(create_job(gateway), 503)
        unkeyed, keyed = gateway.jobs.recent()
        assert keyed.state is unkeyed.state is JobState.FAILED
        assert keyed.error

        queue.broken = False
        again = create_job(gateway, key="once")
        resumed = gateway[Scope.JOBS_WRITE].post(f"/v1/jobs/{unkeyed.id}/resume")

    assert (again.status_code, again.json()["id"], again.json()["state"]) == (200, keyed.id, "queued")
    assert resumed.json()["state"] == "queued"
    assert resumed.json()["error"] is None
    assert queue.sent == [keyed.id, unkeyed.id]


def test_jobs_are_listed_page_by_page(gateway: Gateway):
    """Newest first; the cursor of the last page is empty."""
    made = [create_job(gateway).json()["id"] for _ in range(3)]
    reader = gateway[Scope.JOBS_READ]

    first = reader.get("/v1/jobs", params={"limit": 2}).json()
    second = reader.get("/v1/jobs", params={"limit": 2, "before": first["before"]}).json()

    assert [job["id"] for job in first["data"] + second["data"]] == made[::-1]
    assert second["before"] is None
    assert reader.get(f"/v1/jobs/{made[0]}").json()["id"] == made[0]
    error_of(reader.get("/v1/jobs/job-unknown"), 404)
    for wrong in ("limit=0", "limit=1000", "before=nan", "before=x"):
        error_of(reader.get(f"/v1/jobs?{wrong}"), 400)


def test_a_waiting_job_is_cancelled_and_resumed_by_nobody(gateway: Gateway):
    """Cancelled is the end; cancelling again changes nothing."""
    writer = gateway[Scope.JOBS_WRITE]
    job = create_job(gateway).json()["id"]

    assert writer.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert writer.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    error_of(writer.post(f"/v1/jobs/{job}/resume"), 409)


def test_a_failed_job_is_resumed(gateway: Gateway):
    """Queued again, with a new message; a stage is resumed through its pipeline only."""
    writer = gateway[Scope.JOBS_WRITE]
    job = create_job(gateway).json()["id"]
    error_of(writer.post(f"/v1/jobs/{job}/resume"), 409)
    gateway.jobs.take(job)
    assert writer.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelling"
    gateway.jobs.move(job, JobState.FAILED, error="out of memory")

    assert writer.post(f"/v1/jobs/{job}/resume").json()["state"] == "queued"

    assert len(queued_messages(gateway.redis)) == 2
    assert gateway.jobs.take(job) is not None


def test_a_job_is_paused_and_resumed(gateway: Gateway):
    """At once while it waits; asking again, or when it has ended, changes nothing; its followers are told once."""
    writer = gateway[Scope.JOBS_WRITE]
    job = create_job(gateway).json()["id"]

    assert writer.post(f"/v1/jobs/{job}/pause").json()["state"] == "paused"
    assert writer.post(f"/v1/jobs/{job}/pause").json()["state"] == "paused"
    assert gateway.jobs.take(job) is None
    assert writer.post(f"/v1/jobs/{job}/resume").json()["state"] == "queued"
    gateway.jobs.take(job)
    assert writer.post(f"/v1/jobs/{job}/pause").json()["state"] == "pausing"
    error_of(writer.post(f"/v1/jobs/{job}/resume"), 409)
    gateway.jobs.move(job, JobState.SUCCEEDED)
    assert writer.post(f"/v1/jobs/{job}/pause").json()["state"] == "succeeded"

    states = [event.data["state"] for event in EventLog(gateway.redis).read(job)]
    assert states == ["queued", "paused", "queued", "pausing"]
    error_of(gateway[Scope.JOBS_READ].post(f"/v1/jobs/{job}/pause"), 403)
    error_of(writer.post("/v1/jobs/job-unknown/pause"), 404)


def test_a_stage_is_paused_with_its_pipeline_only(gateway: Gateway):
    """Alone it would leave the pipeline waiting for good."""
    job = create_job(gateway).json()["id"]
    stage = gateway.jobs.get(job).model_copy(update={"id": "job-stage", "kind": "stage", "parent": job})
    gateway.redis.set(job_key(stage.id), stage.model_dump_json())

    assert job in error_of(gateway[Scope.JOBS_WRITE].post("/v1/jobs/job-stage/pause"), 409)["message"]


def test_events_are_listed_from_any_point(gateway: Gateway):
    """What the gateway did is among them."""
    job = create_job(gateway).json()["id"]
    log = EventLog(gateway.redis)
    second = log.append(job, "progress", step=1)
    reader = gateway[Scope.JOBS_READ]

    everything = reader.get(f"/v1/jobs/{job}/events").json()
    later = reader.get(f"/v1/jobs/{job}/events", params={"after": everything["data"][0]["id"]}).json()

    assert [event["type"] for event in everything["data"]] == ["state", "progress"]
    assert everything["data"][0]["data"] == {"state": "queued"}
    assert later["after"] == second
    assert [event["id"] for event in later["data"]] == [second]
    error_of(reader.get(f"/v1/jobs/{job}/events?after=yesterday"), 400)
    error_of(reader.get("/v1/jobs/job-unknown/events"), 404)


def frames(text: str) -> list[dict[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_events_are_followed_live_to_the_end(gateway: Gateway):
    """A follower gets what was, what comes, and the end; after a break it carries on where it was."""
    job = create_job(gateway).json()["id"]
    log = EventLog(gateway.redis)
    reader = gateway[Scope.JOBS_READ]

    def work() -> None:
        token = gateway.jobs.take(job).token
        for step in range(3):
            log.append(job, "progress", step=step)
            time.sleep(0.1)
        gateway.jobs.move(job, JobState.SUCCEEDED, holder=token)
        time.sleep(0.3)
        log.append(job, "state", state="succeeded")

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        live = frames(reader.get(f"/v1/jobs/{job}/events", headers={"accept": "text/event-stream"}).text)
        working.result()
    middle = live[2]["id"]
    replayed = reader.get(f"/v1/jobs/{job}/events?stream=true", headers={"last-event-id": middle})
    over = reader.get(f"/v1/jobs/{job}/events?stream=true", headers={"last-event-id": live[-1]["id"]})

    assert [frame["event"] for frame in live] == ["state", "progress", "progress", "progress", "state"]
    assert json.loads(live[-1]["data"])["data"] == {"state": "succeeded"}
    assert frames(replayed.text) == live[3:]
    assert over.status_code == 204, "an EventSource does not come back after it"


def test_a_follower_of_a_resumed_job_goes_on(gateway: Gateway):
    """The failure in its past is not its end."""
    job = create_job(gateway).json()["id"]
    log = EventLog(gateway.redis)
    gateway.jobs.move(job, JobState.FAILED)
    log.append(job, "state", state="failed")
    gateway[Scope.JOBS_WRITE].post(f"/v1/jobs/{job}/resume")

    with ThreadPoolExecutor(1) as pool:
        url = f"/v1/jobs/{job}/events?stream=true"
        live = pool.submit(lambda: frames(gateway[Scope.JOBS_READ].get(url).text))
        time.sleep(0.5)
        assert not live.done()
        gateway[Scope.JOBS_WRITE].post(f"/v1/jobs/{job}/cancel")
        states = [json.loads(frame["data"])["data"]["state"] for frame in live.result()]

    assert states == ["queued", "failed", "queued", "cancelled"]


def test_pairs_of_a_lineage_are_counted(gateway: Gateway):
    """Asking makes no lineage."""
    made_by = {"attacker": "a", "actor": "b", "critic": "c", "charter": "d", "template": "e"}
    stream = PairStream(gateway.redis, "line")
    for number in range(3):
        stream.add(
            Pair(
                kind="attack",
                cell=Cell(subdomain="pol.rights", tactic="direct", language=Language.EN),
                card="card",
                goal=0,
                query=f"query {number}",
                chosen="answer",
                chosen_critique=Critique(outcome=Outcome.CONSISTENT),
                provenance=Provenance(**made_by, lineage="line", round=1, trace="t"),
            )
        )
    stream.acknowledge(stream.claim("worker", limit=1), "actor-2")
    reader = gateway[Scope.JOBS_READ]

    counts = reader.get("/v1/pairs/line").json()
    faults = counts.pop("faults")
    assert counts == {"lineage": "line", "waiting": 2, "used": 1, "dead": 0}
    assert len(faults) == 1
    assert "in no manifest" in faults[0]
    before = set(gateway.redis.keys())
    error_of(reader.get("/v1/pairs/other"), 404)
    error_of(reader.get("/v1/pairs/No..Name"), 400)
    assert set(gateway.redis.keys()) == before


# Redis away


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with serve_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_a_stalled_redis_does_not_stall_a_known_chat(own_redis: RedisServer, tmp_path: Path):
    """A known key keeps chatting, beyond its time in the cache; a revoked one stops once Redis answers."""
    limits = GatewaySettings(key_ttl_s=0.2)
    with gateway_on(own_redis.url, tmp_path, FakeActor(), limits=limits) as gateway:
        key, key_id = gateway.key(Scope.CHAT)
        chat = {
            "url": "/v1/chat/completions",
            "json": chat_body(),
            "headers": {"authorization": f"Bearer {key}"},
        }
        assert gateway[None].post(**chat).status_code == 200
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            times = []
            for _ in range(20):
                begun = time.monotonic()
                assert gateway[None].post(**chat).status_code == 200
                times.append(time.monotonic() - begun)
                time.sleep(0.03)
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        KeyStore(gateway.redis, PEPPER).revoke(key_id)

        wait_until(lambda: gateway[None].post(**chat).status_code == 401, timeout_s=3)

    assert max(times) < 1, "without the cache each would wait for Redis, for seconds"


def test_a_dead_redis_is_told_from_a_wrong_key(own_redis: RedisServer, tmp_path: Path):
    """Who is known chats on; who is not gets 503, jobs get 503, and the gateway says what it lacks.

    It stays ready for a balancer, as long as it trusts the keys that it knows.
    """
    limits = GatewaySettings(alias_ttl_s=0, key_grace_s=3)
    with gateway_on(own_redis.url, tmp_path, FakeActor(), limits=limits) as gateway:
        gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body())
        gateway[Scope.JOBS_READ].get("/v1/jobs")
        unknown = {"authorization": f"Bearer {gateway.key(Scope.CHAT)[0]}"}
        assert gateway[None].get("/health/ready").json() == {"status": "ok"}
        own_redis.process.kill()
        own_redis.process.wait()

        assert gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body()).status_code == 200
        error_of(gateway[None].post("/v1/chat/completions", json=chat_body(), headers=unknown), 503)
        assert error_of(gateway[Scope.JOBS_READ].get("/v1/jobs"), 503)["code"] == "unavailable"
        wait_until(lambda: gateway[None].get("/health/ready").json()["status"] == "degraded", timeout_s=3)
        assert gateway[None].get("/health/ready").status_code == 200
        wait_until(lambda: gateway[None].get("/health/ready").status_code == 503, timeout_s=6)
        assert gateway[None].get("/health/live").status_code == 200


def test_one_lookup_serves_all_who_wait_for_it():
    """Sixteen requests with the same new key ask Redis once; what it says of an unknown key is not kept."""
    asked: list[str] = []

    def look_up() -> str:
        asked.append("once")
        time.sleep(0.05)
        return "record"

    def unknown() -> str:
        raise Unauthenticated("No.")

    async def run() -> None:
        lookups: Lookups[str] = Lookups(ttl_s=10, grace_s=10)
        assert await asyncio.gather(*(lookups.get("a", look_up) for _ in range(16))) == ["record"] * 16
        for _ in range(2):
            with pytest.raises(Unauthenticated):
                await lookups.get("b", unknown)
        assert await lookups.get("b", look_up) == "record"

    asyncio.run(run())

    assert len(asked) == 2


# Starting


SECRETS = {"VCLLM_PEPPER": "pepper", "VCLLM_INTERNAL_TOKEN": "internal"}


def refusal(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    for name in os.environ:
        if name.startswith(("VCLLM_", "GATEWAY_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "VCLLM_PEPPER is not set"),
        ({"VCLLM_PEPPER": "pepper"}, "VCLLM_INTERNAL_TOKEN is not set"),
        ({**SECRETS, "VCLLM_REDIS_URL": "redis://127.0.0.1:1/0"}, "Redis does not answer"),
        ({**SECRETS, "VCLLM_REDIS_URL": "nonsense"}, "Redis does not answer"),
        ({**SECRETS, "GATEWAY_PORT": "many"}, "port"),
        ({**SECRETS, "VCLLM_ACTOR_URLS": "actor:8201"}, "'actor:8201' is not an address"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_sentence(
    environment: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Exit code 1, one line, no traceback."""
    assert says in refusal(environment, monkeypatch, capsys)


def test_a_taken_port_is_named(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """With the variable that moves it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refusal({**SECRETS, "VCLLM_REDIS_URL": redis_url, "GATEWAY_PORT": port}, monkeypatch, capsys)

    assert said == f"The gateway cannot start: port {port} is taken. Set GATEWAY_PORT to a free one."


def test_it_serves_and_stops_when_told(client: Redis, redis_url: str):
    """`python -m gateway` answers; on SIGTERM it lets go of whoever follows a job, and ends cleanly."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    key, _ = KeyStore(client, PEPPER).create("test", [Scope.JOBS_READ])
    job, _ = JobStore(client).create(JobRequest(recipe="tiny"), queue="rollouts")
    EventLog(client).append(job.id, "state", state="queued")
    headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
    environment = {**os.environ, **SECRETS, "VCLLM_REDIS_URL": redis_url, "GATEWAY_PORT": str(port)}
    command = [sys.executable, "-W", "error", "-m", "gateway"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_until(lambda: answers(f"{url}/health/ready"))
        with httpx.stream("GET", f"{url}/v1/jobs/{job.id}/events", headers=headers) as followed:
            received = followed.iter_text()
            assert "queued" in next(received)
            process.terminate()
            assert list(received) == []
        output = process.communicate(timeout=5)[0].decode()

    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_what_runs_is_finished_when_it_is_told_to_stop(client: Redis, redis_url: str):
    """SIGTERM: not ready at once, the port still open for a pause; then a whole answer and a stream end well."""
    key, _ = KeyStore(client, PEPPER).create("test", [Scope.CHAT])
    AliasStore(client).set("actor", "current", "actor-2")
    actor = FakeActor()
    with serve(actor.app) as actor_url:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            **SECRETS,
            "VCLLM_REDIS_URL": redis_url,
            "VCLLM_ACTOR_URLS": actor_url,
            "GATEWAY_PORT": str(port),
            "GATEWAY_DRAIN_PAUSE_S": "1",
        }
        command = [sys.executable, "-W", "error", "-m", "gateway"]
        with (
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process,
            ThreadPoolExecutor(2) as pool,
            httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=20) as http,
        ):
            wait_until(lambda: answers(f"{url}/health/ready"))
            chat = "/v1/chat/completions"
            whole = pool.submit(http.post, chat, json=chat_body("pause"))
            streamed = pool.submit(http.post, chat, json=chat_body("pause", stream=True))
            wait_until(lambda: actor.begun == 2)
            process.terminate()
            wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 503, timeout_s=0.8)

            assert http.post(chat, json=chat_body()).status_code == 200, "balancers need a moment to see it"
            assert whole.result().json()["choices"][0]["message"]["content"] == "".join(WORDS)
            assert streamed.result().text.endswith("data: [DONE]\n\n")
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health/live")
            output = process.communicate(timeout=5)[1].decode()

    assert process.returncode == 0
    assert "Traceback" not in output


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_the_gateway_never_loads_torch():
    """Not by itself and not through anything it imports."""
    heavy = "{'torch', 'transformers', 'services'} & {name.split('.')[0] for name in sys.modules}"
    check = f"import gateway.app, gateway.__main__, sys; assert not {heavy}"

    subprocess.run([sys.executable, "-c", check], check=True, timeout=30)


def test_the_manual_names_every_setting():
    """And none that is not there."""
    manual = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    table = manual.partition("## Settings")[2]
    named = set(re.findall(r"`(GATEWAY_\w+)`", table))

    assert named == {f"GATEWAY_{name}".upper() for name in GatewaySettings.model_fields}
