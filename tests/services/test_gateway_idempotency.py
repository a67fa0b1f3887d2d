"""Jobs asked for many times under one key: at once, while the first is made, and after a gateway died half-way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.fake_actor import FakeActor
from tests.gateway_world import Gateway, create_job, error_of, gateway_on, queued_messages, sdk
from vcllm.contracts.base import digest
from vcllm.contracts.jobs import JobRecord, JobRequest
from vcllm.contracts.keys import Scope
from vcllm.stores.connect import idempotency_busy_key
from vcllm.stores.idempotency import IdempotencyStore

REQUEST = JobRequest(recipe="tiny")


class SlowQueue:
    """A broker that takes its time."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.sent: list[str] = []

    def send(self, record: JobRecord) -> None:
        self.entered.set()
        assert self.go_on.wait(10)
        self.sent.append(record.id)

    def close(self) -> None: ...


def key_id(gateway: Gateway) -> str:
    """Of the client that writes jobs."""
    key = gateway[Scope.JOBS_WRITE].headers["authorization"]
    return key.removeprefix("Bearer vck_").partition("_")[0]


def test_a_hundred_at_once_make_one_job(gateway: Gateway):
    """Counted in the store and in the queue; whoever comes while it is made is told so, and not to try by itself."""
    assert gateway[Scope.JOBS_WRITE], "made before the threads ask for it"
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda _: create_job(gateway, key="once"), range(100)))

    statuses = [reply.status_code for reply in replies]
    busy = [reply for reply in replies if reply.status_code == 409]
    assert set(statuses) <= {200, 201, 409}
    assert statuses.count(201) == 1
    assert len({reply.json()["id"] for reply in replies if reply.status_code != 409}) == 1
    assert len(gateway.jobs.recent(limit=100)) == 1
    assert len(queued_messages(gateway.redis)) == 1
    assert all(reply.headers["x-should-retry"] == "false" for reply in busy)


def test_the_same_request_is_refused_while_the_first_is_made(redis_url: str, tmp_path: Path):
    """409, which the `openai` SDK does not repeat; another request under the key is 422 even then."""
    queue = SlowQueue()
    with gateway_on(redis_url, tmp_path, FakeActor(), queue=queue) as gateway, ThreadPoolExecutor(1) as pool:
        assert gateway[Scope.JOBS_WRITE]
        first = pool.submit(create_job, gateway, "once")
        assert queue.entered.wait(10)
        second, other = create_job(gateway, "once"), create_job(gateway, "once", seed=1)
        client = sdk(gateway, Scope.JOBS_WRITE, max_retries=3)
        with pytest.raises(openai.ConflictError) as conflict:
            client.post(
                "/jobs", cast_to=object, body={"recipe": "tiny"}, options={"headers": {"Idempotency-Key": "once"}}
            )
        queue.go_on.set()
        made = first.result()
        third = create_job(gateway, "once")

    assert error_of(second, 409)["code"] == "idempotency_in_progress"
    assert second.headers["x-should-retry"] == "false"
    assert error_of(other, 422)["code"] == "idempotency_conflict"
    assert conflict.value.response.headers["x-should-retry"] == "false"
    assert (made.status_code, third.status_code) == (201, 200)
    assert third.json()["id"] == made.json()["id"]
    assert queue.sent == [made.json()["id"]]


def died(gateway: Gateway, *, stored: bool) -> str:
    """What a gateway leaves that is killed in the middle of a create, once the time of its claim is over."""
    owner = key_id(gateway)
    claims = IdempotencyStore(gateway.redis)
    claim = claims.claim(owner, "once", digest(["jobs", REQUEST.model_dump(mode="json")]), "job-claimed")
    if stored:
        gateway.jobs.create(REQUEST, queue="rollouts", job_id=claim.job)
    assert error_of(create_job(gateway, "once"), 409)
    gateway.redis.delete(idempotency_busy_key(owner, "once"))
    return claim.job


@pytest.mark.parametrize("stored", [False, True], ids=["before it was stored", "before it was sent"])
def test_a_request_whose_gateway_died_is_taken_over(gateway: Gateway, stored: bool):
    """The job is the one that was claimed, and it reaches the queue."""
    claimed = died(gateway, stored=stored)

    reply = create_job(gateway, "once")
    again = create_job(gateway, "once")

    assert reply.status_code in (200, 201)
    assert reply.json()["id"] == again.json()["id"] == claimed
    assert [record.id for record in gateway.jobs.recent()] == [claimed]
    assert len(queued_messages(gateway.redis)) == 1


def test_a_refused_request_does_not_use_up_its_key(gateway: Gateway):
    """A corrected one may have it."""
    body = {"model": "vc-llm", "training_file": "file-unknown"}
    headers = {"idempotency-key": "once"}
    refused = gateway[Scope.JOBS_WRITE].post("/v1/fine_tuning/jobs", json=body, headers=headers)

    error_of(refused, 404)
    assert create_job(gateway, "once").status_code == 201


def test_a_key_belongs_to_one_route(gateway: Gateway):
    """The same words asked elsewhere are another request."""
    create_job(gateway, "once")
    campaign: httpx.Response = gateway[Scope.JOBS_WRITE].post(
        "/v1/campaigns", json={"recipe": "tiny"}, headers={"idempotency-key": "once"}
    )

    assert error_of(campaign, 422)["code"] == "idempotency_conflict"
