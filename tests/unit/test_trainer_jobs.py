"""What a worker does with a job besides the work: holding it, giving it back, and seeing to its stages."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from services.trainer.children import Children
from services.trainer.draining import Drain
from services.trainer.hold import Cancelled, Draining, Hold, Paused
from services.trainer.runner import Runner, reap
from services.trainer.settings import TrainerSettings
from tests.servers import free_port
from vcllm.contracts.chat import ChatMessage, Sampling
from vcllm.contracts.jobs import JobRecord, JobRequest, JobState
from vcllm.contracts.problems import Unavailable
from vcllm.contracts.recipes import Base, ImportStage, StageOrder
from vcllm.settings import Settings
from vcllm.stores.connect import lease_key
from vcllm.stores.jobs import JobStore, StaleToken
from vcllm.web.clients import ActorClient

LEASE_S = 2.0


@pytest.fixture
def jobs(client: Redis) -> JobStore:
    return JobStore(client, LEASE_S)


def taken(jobs: JobStore) -> JobRecord:
    record = jobs.take(jobs.create(JobRequest(recipe="starter"), queue="rollouts")[0].id)
    assert record is not None
    return record


def new_order(version: str = "line-sft") -> StageOrder:
    return StageOrder(
        stage=ImportStage(), role="actor", version=version, lineage="line", seed=0, base=Base(model="m"),
        dataset="", recipe="r", recipe_hash="", charter="",
    )  # fmt: skip


def reason_within(hold: Hold, timeout_s: float) -> Exception | None:
    deadline = time.monotonic() + timeout_s
    while hold.reason() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return hold.reason()


def test_a_hold_notices_what_is_asked_within_a_second(jobs: JobStore):
    """A pause first, then that the job is not wanted at all, which is stronger."""
    record = taken(jobs)
    with Hold(jobs, record) as hold:
        hold.go_on()
        jobs.ask_pause(record.id)
        assert isinstance(reason_within(hold, 1.5), Paused)
        hold.confirm()  # what is done is kept
        jobs.ask_cancel(record.id)
        time.sleep(1.1)

        with pytest.raises(Cancelled):
            hold.go_on()
        with pytest.raises(Cancelled):
            hold.confirm()


def test_a_hold_of_a_worker_that_is_about_to_end_says_so_at_once(jobs: JobStore):
    """The flag is shared memory; a job that was given to another is the stronger reason."""
    drain, record = Drain(), taken(jobs)
    with Hold(jobs, record, drain) as hold:
        drain.begin()
        assert isinstance(hold.reason(), Draining)
        jobs.leave(record.id, holder=record.token)
        time.sleep(1.1)

        with pytest.raises(StaleToken):
            hold.go_on()


def test_a_call_to_a_server_that_is_away_ends_when_its_job_is_paused(jobs: JobStore):
    """A pipeline that waited for a role server used to see a pause only when the server was back."""
    record = taken(jobs)
    actor = ActorClient([f"http://127.0.0.1:{free_port()}"], SecretStr("t"), patience_s=60)
    with Hold(jobs, record) as hold:
        hold.hang_up = actor.close
        threading.Timer(0.3, jobs.ask_pause, [record.id]).start()
        started = time.monotonic()
        with pytest.raises(Unavailable):
            actor.chat_batch("v1", [[ChatMessage(role="user", content="Hello?")]], Sampling())

        assert time.monotonic() - started < 2.5
        assert isinstance(hold.reason(), Paused)


def test_a_worker_that_is_about_to_end_passes_a_message_on(jobs: JobStore, redis_url: str, tmp_path: Path):
    """Celery hands out what it had fetched; the job is not taken, and its message is sent again."""
    record, _ = jobs.create(JobRequest(recipe="starter"), queue="rollouts")
    sent: list[tuple[str, str]] = []
    settings = Settings(redis_url=redis_url, home=tmp_path)
    runner = Runner(settings, TrainerSettings(), lambda job, queue: sent.append((job, queue)), lambda: True)

    runner.run(record.id)
    runner.run("job-unknown")

    assert sent == [(record.id, "rollouts")]
    assert jobs.get(record.id) == record


def test_a_job_whose_workers_vanish_is_given_up_after_some_attempts(jobs: JobStore, redis_url: str, client: Redis):
    """Failed, with the reason; attempts that were given back do not count."""
    record, _ = jobs.create(JobRequest(recipe="starter"), queue="rollouts")
    for _ in range(3):
        held = jobs.take(record.id)
        jobs.leave(record.id, holder=held.token, attempt=held.attempt - 1)
    settings, trainer = Settings(redis_url=redis_url), TrainerSettings(max_attempts=2)
    for _ in range(2):
        jobs.take(record.id)
        client.delete(lease_key(record.id))
        reap(settings, trainer, lambda job, queue: None)

    given_up = jobs.get(record.id)
    assert (given_up.state, given_up.attempt) == (JobState.FAILED, 2)
    assert given_up.error == "Given up: 2 workers vanished while they ran it. Its folder and log are kept."


class FakeHold:
    """Says what the test wants."""

    def __init__(self) -> None:
        self.asked: Exception | None = None

    def reason(self) -> Exception | None:
        return self.asked

    def go_on(self) -> None:
        if self.asked is not None:
            raise self.asked


@pytest.fixture
def pipeline(jobs: JobStore) -> SimpleNamespace:
    """What `Children` needs of a pipeline that runs, and the messages it sends."""
    trainer = TrainerSettings(poll_s=0.02, grace_s=1)
    store = SimpleNamespace(has=lambda role, version: version in committed)
    committed: set[str] = set()
    context = SimpleNamespace(record=taken(jobs), jobs=jobs, trainer=trainer, hold=FakeHold(), store=store)
    sent: list[str] = []
    children = Children(context, lambda job, queue: sent.append(job))  # type: ignore[arg-type]
    return SimpleNamespace(children=children, context=context, committed=committed, sent=sent, jobs=jobs)


def stages(pipeline: SimpleNamespace) -> list[JobRecord]:
    return pipeline.jobs.recent(parent=pipeline.context.record.id)


def test_the_runs_of_a_pipeline_pause_and_go_on_with_it(pipeline: SimpleNamespace):
    """One that waits at once, one that trains once its worker has let go; both are queued again afterwards."""
    pipeline.children.start(new_order("line-critic"))
    pipeline.children.start(new_order("line-sft"))
    runs = pipeline.jobs.take(pipeline.sent[1])
    pipeline.context.hold.asked = Paused()
    worker = threading.Timer(0.3, lambda: pipeline.jobs.leave(runs.id, holder=runs.token))
    worker.start()

    pipeline.children.follow()
    assert [stage.state for stage in stages(pipeline)] == [JobState.PAUSED] * 2

    pipeline.context.hold.asked = None
    pipeline.children.put_back()
    assert [stage.state for stage in stages(pipeline)] == [JobState.QUEUED] * 2
    assert sorted(pipeline.sent[2:]) == sorted(pipeline.sent[:2])


def test_a_pipeline_that_is_being_paused_does_not_wake_its_runs(pipeline: SimpleNamespace):
    """It may see the run's state before its own."""
    pipeline.children.start(new_order())
    pipeline.jobs.ask_pause(pipeline.context.record.id)

    pipeline.children.put_back()

    assert stages(pipeline)[0].state is JobState.PAUSED


def test_a_pipeline_that_is_cancelled_while_it_pauses_cancels_its_runs(pipeline: SimpleNamespace):
    """What was paused already is cancelled, too."""
    pipeline.children.start(new_order("line-critic"))
    pipeline.children.start(new_order("line-sft"))
    runs = pipeline.jobs.take(pipeline.sent[1])

    def cancel() -> None:
        pipeline.context.hold.asked = Cancelled()
        time.sleep(0.1)
        pipeline.jobs.leave(runs.id, holder=runs.token)

    pipeline.context.hold.asked = Paused()
    threading.Timer(0.2, cancel).start()
    pipeline.children.follow()

    assert [stage.state for stage in stages(pipeline)] == [JobState.CANCELLED] * 2


def test_a_run_that_was_cancelled_with_its_pipeline_is_no_failure(jobs: JobStore, pipeline: SimpleNamespace):
    """The pipeline used to see its run cancelled before it knew of its own cancelling, and failed."""
    with Hold(jobs, pipeline.context.record) as hold:
        pipeline.context.hold = hold
        pipeline.children.start(new_order())
        jobs.ask_cancel(pipeline.context.record.id)

        with pytest.raises(Cancelled):
            pipeline.children.wait(new_order())


def test_a_pipeline_whose_worker_is_about_to_end_leaves_its_runs_alone(pipeline: SimpleNamespace):
    """They are on other workers; whoever carries on finds them again."""
    pipeline.children.start(new_order())
    pipeline.context.hold.asked = Draining()

    pipeline.children.follow()

    assert stages(pipeline)[0].state is JobState.QUEUED


def test_a_run_that_failed_after_its_version_was_committed_is_run_again(pipeline: SimpleNamespace):
    """Its pairs were not acknowledged. A resumed pipeline used to fail for ever with the error of the first run."""
    pipeline.children.start(new_order())
    pipeline.jobs.take(pipeline.sent[0])
    pipeline.jobs.move(pipeline.sent[0], JobState.FAILED, error="Redis was away")
    pipeline.committed.add("line-sft")

    pipeline.children.start(new_order())

    assert [stage.state for stage in stages(pipeline)] == [JobState.QUEUED, JobState.FAILED]


def test_a_version_of_another_pipeline_is_not_made_again(pipeline: SimpleNamespace):
    """Unless the pairs it lists were never entered into the ledger, which takes a run to do."""
    pipeline.committed.add("line-sft")
    pipeline.context.store.manifest = lambda role, version: SimpleNamespace(pairs=["a", "b"])
    used: dict[str, str] = {"a": "line-sft", "b": "line-sft"}
    pipeline.context.pairs = SimpleNamespace(used_by=lambda: used)
    claims: Any = new_order().model_copy(update={"claims_pairs": True})

    pipeline.children.start(new_order())
    pipeline.children.start(claims)
    assert stages(pipeline) == []

    del used["b"]
    pipeline.children.start(claims)
    assert len(stages(pipeline)) == 1
