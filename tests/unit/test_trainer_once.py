"""A worker for one job: it takes one message, runs that job, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from services.trainer.app import create_celery, sender
from services.trainer.once import main, take
from services.trainer.settings import TrainerSettings
from tests.servers import wait_until
from vcllm.contracts.jobs import JobRequest, JobState
from vcllm.settings import Settings
from vcllm.stores.jobs import JobStore


@pytest.fixture
def jobs(client: Redis) -> JobStore:
    return JobStore(client, 2.0)


def never() -> bool:
    return False


def queued(jobs: JobStore, redis_url: str, number: int = 1) -> list[str]:
    """Jobs whose recipe nobody has installed, each with its message on the queue, sent as the gateway does."""
    send = sender(create_celery(Settings(redis_url=redis_url), TrainerSettings()))
    ids = [jobs.create(JobRequest(recipe="nobody-has-it"), queue="training")[0].id for _ in range(number)]
    for job_id in ids:
        send(job_id, "training")
    return ids


def test_it_runs_one_job_and_leaves_the_next(
    jobs: JobStore, client: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job ends as its record says, and the second one's message still waits for somebody else."""
    monkeypatch.setenv("VCLLM_REDIS_URL", redis_url)
    monkeypatch.setenv("VCLLM_HOME", str(tmp_path))
    monkeypatch.setenv("VCLLM_RECIPES", str(tmp_path))
    first, second = queued(jobs, redis_url, 2)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    main(["training", "--wait-s", "0"])

    for number, handler in before.items():
        signal.signal(number, handler)
    assert jobs.get(first).state is JobState.FAILED
    assert "nobody-has-it" in (jobs.get(first).error or "")
    assert jobs.get(second).state is JobState.QUEUED
    assert (client.llen("training"), client.hlen("unacked")) == (1, 0)


def test_it_leaves_when_nothing_waits(redis_url: str) -> None:
    app = create_celery(Settings(redis_url=redis_url), TrainerSettings())
    started = time.monotonic()

    assert take(app, "training", 0.6, never) is None
    assert 0.5 < time.monotonic() - started < 5


def test_a_message_for_something_else_is_dropped(jobs: JobStore, client: Redis, redis_url: str) -> None:
    """Whoever wrote it to the queue, the next one is taken."""
    app = create_celery(Settings(redis_url=redis_url), TrainerSettings())
    app.send_task("another.task", args=["x"], queue="training")
    (job_id,) = queued(jobs, redis_url)

    assert take(app, "training", 0, never) == job_id
    assert client.llen("training") == 0


def test_told_to_end_while_it_waits_it_takes_nothing(redis_url: str, jobs: JobStore, client: Redis) -> None:
    """SIGTERM ends the process at once and in order, and a message sent later stays where it is."""
    environment = {**os.environ, "VCLLM_REDIS_URL": redis_url}
    command = [sys.executable, "-m", "services.trainer.once", "training", "--wait-s", "60"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            wait_until(lambda: any(entry["cmd"] == "rpop" for entry in client.client_list()), 30)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
    queued(jobs, redis_url)

    assert client.llen("training") == 1
