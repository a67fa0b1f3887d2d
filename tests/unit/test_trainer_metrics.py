"""Workers and the reaper tell of jobs, queues and pairs what Redis says at that moment."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from services.trainer.metrics import registry_of, serve_metrics
from services.trainer.runner import Runner, reap
from services.trainer.settings import TrainerSettings
from tests.servers import free_port
from vcllm.contracts.jobs import JobRequest, JobState
from vcllm.contracts.recipes import Base, ImportStage, StageOrder
from vcllm.settings import Settings
from vcllm.stores import job_counts
from vcllm.stores.campaigns import CampaignStore
from vcllm.stores.connect import lease_key, open_redis, pairs_dead_key, pairs_key, pairs_used_key
from vcllm.stores.job_counts import JobCounts
from vcllm.stores.jobs import JobStore

REQUEST = JobRequest(recipe="starter")


@pytest.fixture
def jobs(client: Redis) -> JobStore:
    return JobStore(client)


def told(client: Redis) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    samples = [sample for family in registry_of(client).collect() for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_jobs_are_counted_by_their_state(client: Redis, jobs: JobStore):
    """Every state is there, so that one which is left does not stand still at its last number."""
    first, second, _ = (jobs.create(REQUEST, queue="rollouts")[0] for _ in range(3))
    jobs.take(first.id)
    jobs.ask_cancel(second.id)

    samples = told(client)
    assert {state: samples["vc_job_state", state] for state in JobState} == {
        **dict.fromkeys(JobState, 0),
        JobState.QUEUED: 1,
        JobState.RUNNING: 1,
        JobState.CANCELLED: 1,
    }


def test_a_job_that_runs_is_counted_however_old_it_is(client: Redis, jobs: JobStore, monkeypatch: pytest.MonkeyPatch):
    """Only the newest are looked at, and those that run."""
    monkeypatch.setattr(job_counts, "NEWEST_JOBS", 2)
    old = jobs.create(REQUEST, queue="rollouts")[0]
    jobs.take(old.id)
    for _ in range(3):
        jobs.create(REQUEST, queue="rollouts")

    samples = told(client)
    assert (samples["vc_job_state", "running"], samples["vc_job_state", "queued"]) == (1, 2)


def test_a_state_is_found_in_a_record_of_any_size(client: Redis, jobs: JobStore):
    """It is read off the record's beginning, where it stands before what was asked for."""
    order = StageOrder(
        stage=ImportStage(), role="actor", version="line-sft", lineage="line", seed=0, base=Base(model="m"),
        dataset="", recipe="r", recipe_hash="", charter="", replayed=["a" * 64] * 1000,
    )  # fmt: skip
    record, _ = jobs.create(order, queue="training", parent="job-" + "f" * 16)
    jobs.take(record.id)
    jobs.move(record.id, JobState.FAILED, error='"state":"queued"')

    assert told(client)["vc_job_state", "failed"] == 1


def test_what_waits_is_told_by_its_age_and_by_its_messages(client: Redis, jobs: JobStore):
    """A job may have no message, or several: both are looked at."""
    record, _ = jobs.create(REQUEST, queue="rollouts")
    client.zadd("vcllm:jobs", {record.id: time.time() - 90})
    client.lpush("training", "message")

    samples = told(client)
    assert samples["vc_job_waited_seconds",] == pytest.approx(90, abs=5)
    assert (samples["vc_job_queue_length", "rollouts"], samples["vc_job_queue_length", "training"]) == (0, 1)


def test_attempts_and_lost_leases_outlive_who_counted_them(
    client: Redis, jobs: JobStore, redis_url: str, tmp_path: Path
):
    """A worker takes a job and fails it; another worker's lease runs out; the reaper finds that out, and looks on."""
    settings, trainer = Settings(redis_url=redis_url, home=tmp_path, recipes=tmp_path), TrainerSettings()
    taken, lost = (jobs.create(REQUEST, queue="rollouts")[0] for _ in range(2))
    Runner(settings, trainer, lambda job, queue: None).run(taken.id)
    jobs.take(lost.id)
    client.delete(lease_key(lost.id))
    for _ in range(2):
        reap(settings, trainer, lambda job, queue: None)

    samples = told(client)
    assert samples["vc_job_attempts_total",] == 1
    assert samples["vc_lease_lost_total",] == 1
    assert samples["vc_reaper_looks_total",] == 2
    assert samples["vc_reaper_looked_timestamp_seconds",] == pytest.approx(time.time(), abs=10)


def test_pairs_are_told_for_the_newest_lineages_only(client: Redis, monkeypatch: pytest.MonkeyPatch):
    """An installation may have had any number of them. Looking changes nothing: no stream is made."""
    monkeypatch.setattr(job_counts, "NEWEST_LINEAGES", 2)
    for number in range(3):
        CampaignStore(client).begin(f"line-{number}", "job", "starter", number)
        client.zadd("vcllm:campaigns", {f"line-{number}": number})
    for _ in range(5):
        client.xadd(pairs_key("line-2"), {"pair": "{}"})
    client.hset(pairs_used_key("line-2"), "p", "v")
    client.xadd(pairs_dead_key("line-2"), {"entry": "1-1"})

    samples = told(client)
    pairs = {key: value for key, value in samples.items() if key[0].startswith("vc_pairs")}
    assert pairs == {
        ("vc_pairs_pending", "line-1"): 0,
        ("vc_pairs_pending", "line-2"): 3,
        ("vc_pairs_dead", "line-1"): 0,
        ("vc_pairs_dead", "line-2"): 1,
    }
    assert not client.exists(pairs_key("line-1"))


def test_without_redis_it_says_so_and_nothing_else():
    """Figures that nobody knows are not told as zeros."""
    with open_redis(f"redis://127.0.0.1:{free_port()}/0", patience=0) as nowhere:
        samples = told(nowhere)

    assert {key: value for key, value in samples.items() if key[0].startswith("vc_")} == {("vc_job_store_up",): 0}


def test_they_are_served_where_a_port_is_set(redis_url: str):
    """In the form that Prometheus reads."""
    port = free_port()
    serve_metrics(Settings(redis_url=redis_url), TrainerSettings(metrics_port=port))

    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        names = {family.name for family in text_string_to_metric_families(reply.read().decode())}
    assert {"vc_job_state", "vc_lease_lost", "process_resident_memory_bytes"} <= names


def test_a_port_that_is_taken_keeps_nobody_from_work(redis_url: str, caplog: pytest.LogCaptureFixture):
    """Two workers on one machine that were told the same."""
    port = free_port()
    for _ in range(2):
        serve_metrics(Settings(redis_url=redis_url), TrainerSettings(metrics_port=port))

    assert f"No metrics: 127.0.0.1:{port} cannot be opened" in caplog.text


def test_nothing_is_served_unless_a_port_is_set(redis_url: str, caplog: pytest.LogCaptureFixture):
    """`vcllm up` runs three of them on one machine."""
    serve_metrics(Settings(redis_url=redis_url), TrainerSettings())

    assert caplog.text == ""


def test_figures_of_nothing_are_zeros(client: Redis):
    """An installation that was just started."""
    figures = JobCounts(client).read()

    assert set(figures.states.values()) == {0}
    assert (figures.waited_s, figures.attempts, figures.looked, list(figures.pairs)) == (0, 0, None, [])
