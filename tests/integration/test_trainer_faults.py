"""A training job through every fault: real Redis, real Celery workers, real training processes.

Whatever happens on the way, one version comes out, it holds what its manifest says, and every pair was used once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.bench import LEASE_S, NUM_STEPS, PATIENCE_S, Bench, is_alive, open_bench
from tests.servers import wait_until
from vcllm.contracts.jobs import JobState

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("faults")) as opened:
        yield opened


def test_a_job_delivered_twice_is_run_once(bench: Bench):
    """Two idle workers get the same message; one trains, the other leaves."""
    bench.idle_workers()
    job = bench.queue_round("twice")
    bench.send(job, "training")

    record = bench.check_outcome(job, "twice")
    assert record.attempt == 1
    assert bench.states(job) == ["running", "succeeded"]
    assert bench.redis.llen("training") == 0


def test_redis_may_be_restarted_while_a_job_trains(bench: Bench):
    """Training goes on meanwhile; what is said afterwards reaches the record."""
    bench.idle_workers()
    job = bench.queue_round("redis")
    bench.trains("redis")
    bench.restart_redis(away_s=1.0)

    bench.check_outcome(job, "redis")
    assert bench.steps(job)[-1] == NUM_STEPS


def test_another_worker_goes_on_when_one_is_killed(bench: Bench):
    """Its training process dies with it; the job goes on from its last checkpoint once the lease has lapsed."""
    bench.idle_workers()
    job = bench.queue_round("killed")
    worker = bench.trains("killed")
    training = worker.training()
    worker.process.kill()
    wait_until(lambda: not any(is_alive(process) for process in training), PATIENCE_S)
    done = int(bench.checkpoints("killed")[-1].removeprefix("step-"))

    record = bench.check_outcome(job, "killed")
    assert record.attempt == 2
    assert bench.states(job) == ["running", "queued", "running", "succeeded"]
    assert min(bench.steps(job)[-2:]) > done


def test_a_worker_that_is_told_to_end_gives_its_job_back_at_a_checkpoint(bench: Bench):
    """SIGTERM: the training run ends with a checkpoint, the other worker goes on at once, and no attempt is counted."""
    bench.idle_workers()
    job = bench.queue_round("told")
    worker = bench.trains("told")
    worker.process.terminate()

    assert worker.process.wait(PATIENCE_S) == 0
    left = bench.jobs.get(job)
    record = bench.check_outcome(job, "told")
    assert (left.attempt, record.attempt) in ((0, 1), (1, 1))
    assert bench.states(job) == ["running", "queued", "running", "succeeded"]


def test_a_paused_job_uses_nothing_and_goes_on_where_it_was(bench: Bench):
    """Within seconds its training process has ended at a checkpoint; resumed, it needs only the rest of the steps."""
    workers = bench.idle_workers()
    job = bench.queue_round("paused")
    bench.trains("paused")
    started = time.monotonic()
    bench.jobs.ask_pause(job)
    bench.until(job, JobState.PAUSED)
    took = time.monotonic() - started

    assert took < 10
    assert not any(worker.training() for worker in workers)
    done = int(bench.checkpoints("paused")[-1].removeprefix("step-"))
    before = len(bench.steps(job))
    bench.jobs.move(job, JobState.QUEUED, attempt=0)
    bench.send(job, "training")
    assert bench.check_outcome(job, "paused").attempt == 1
    assert all(step > done for step in bench.steps(job)[before:])


def test_a_worker_that_wakes_up_late_changes_nothing(bench: Bench):
    """Stopped longer than its lease, while its training process ran on: that one ends before it writes another byte.

    Two training processes used to write into one folder, and the one that was left over could replace checkpoints.
    """
    bench.idle_workers()
    job = bench.queue_round("late")
    late = bench.trains("late")
    training = late.training()
    for process in late.family():
        process.suspend()
    stopped = time.monotonic()
    wait_until(lambda: bench.jobs.get(job).attempt == 2, PATIENCE_S)
    taken = time.monotonic() - stopped
    wait_until(lambda: late.training() == [], PATIENCE_S)
    for process in late.family():
        process.resume()

    record = bench.check_outcome(job, "late")
    assert taken > LEASE_S / 2
    assert record.attempt == 2
    assert training
