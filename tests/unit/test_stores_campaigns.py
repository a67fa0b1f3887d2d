"""Campaigns: known by their lineage, handed from job to job, told to stop, and read back as they were written."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from tests.unit.test_campaign_rounds import a_row
from vcllm.contracts.archive import ArchiveState, CellState
from vcllm.contracts.problems import Conflict
from vcllm.stores.campaigns import CampaignStore, stage_of
from vcllm.stores.connect import campaign_begin_key, events_key, lease_key
from vcllm.stores.events import EventLog


@pytest.fixture
def store(client: Redis) -> CampaignStore:
    return CampaignStore(client)


def archive(round_: int) -> ArchiveState:
    return ArchiveState(lineage="line", round=round_, cells={"pol.rights/direct/zh": CellState(tried=round_, won=1)})


def test_a_campaign_is_known_by_its_lineage(store: CampaignStore):
    """With the job that plays it; a lineage that nobody began is none."""
    store.begin("line", "job-1", "starter", 3)

    head = store.get("line")

    assert (head.lineage, head.job, head.recipe, head.seed) == ("line", "job-1", "starter", 3)
    assert not head.stopping
    assert store.get("other") is None


def test_beginning_again_changes_nothing(store: CampaignStore):
    """The job was interrupted: its place in the list, its rounds and a word to stop stay."""
    store.begin("line", "job-1", "starter", 3)
    store.put_round("line", a_row(1))
    store.ask_stop("line")
    before = store.get("line")

    store.begin("line", "job-1", "starter", 3)

    assert store.get("line") == before
    assert store.rounds("line") == [a_row(1)]


def test_one_job_at_a_time_begins_a_campaign(store: CampaignStore):
    """The same one may come again, as when its gateway died over it; when it is done, others may."""
    with store.beginning("line", "job-1"), pytest.raises(Conflict, match="another request"):
        with store.beginning("other", "job-2"):
            pass
        with store.beginning("line", "job-2"):
            pass
    store.redis.set(campaign_begin_key("line"), "job-3")

    with store.beginning("line", "job-3"):
        pass
    with store.beginning("line", "job-4"):
        pass


def test_a_lineage_is_claimed_from_whoever_lost_its_lease(store: CampaignStore):
    """Not from a job that is held, and not from oneself."""
    store.redis.set(lease_key("job-1"), "1")

    assert store.claim("line", "job-1") == "job-1"
    assert store.claim("line", "job-1") == "job-1"
    assert store.claim("line", "job-2") == "job-1"
    store.redis.delete(lease_key("job-1"))
    assert store.claim("line", "job-2") == "job-2"


def test_of_many_jobs_at_once_one_claims_a_lineage(store: CampaignStore):
    """Each once looked who had it before any of them wrote its own name, and all went on."""
    jobs = [f"job-{number}" for number in range(8)]
    for job in jobs:
        store.redis.set(lease_key(job), "1")
    with ThreadPoolExecutor(8) as pool:
        for attempt in range(20):
            at_once = threading.Barrier(8)

            def claim(job: str, lineage: str = f"line-{attempt}", at_once: threading.Barrier = at_once) -> str:
                at_once.wait(5)
                return store.claim(lineage, job)

            assert len(set(pool.map(claim, jobs))) == 1


def test_another_job_was_not_told_to_stop(store: CampaignStore):
    """It takes the campaign over with the rounds that are done, and comes first in the list."""
    store.begin("line", "job-1", "starter", 3)
    store.begin("other", "job-2", "starter", 4)
    store.put_round("line", a_row(1))
    store.ask_stop("line")

    store.begin("line", "job-3", "starter", 3)

    assert not store.stop_asked("line")
    assert store.rounds("line") == [a_row(1)]
    assert [(head.lineage, head.job) for head in store.recent()] == [("line", "job-3"), ("other", "job-2")]


def test_a_word_to_stop_is_for_one_campaign(store: CampaignStore):
    """Whoever plays asks between two rounds."""
    for lineage in ("line", "other"):
        store.begin(lineage, f"job-{lineage}", "starter", 3)

    store.ask_stop("line")

    assert (store.stop_asked("line"), store.stop_asked("other"), store.stop_asked("nobody")) == (True, False, False)
    assert store.get("line").stopping


def test_a_word_to_stop_makes_no_campaign(store: CampaignStore):
    """Of a lineage that nobody plays."""
    store.ask_stop("line")

    assert store.get("line") is None
    assert store.recent() == []


def test_campaigns_are_listed_page_by_page(store: CampaignStore):
    """Newest first; the last one of a page leads to the next."""
    for number in range(5):
        store.begin(f"line-{number}", f"job-{number}", "starter", number)
        store.redis.hset(f"vcllm:campaign:line-{number}", "created", 100.5 + number)
        store.redis.zadd("vcllm:campaigns", {f"line-{number}": 100.5 + number})

    first = store.recent(2)
    rest = store.recent(9, before=first[-1].created)

    assert [head.lineage for head in first + rest] == [f"line-{number}" for number in (4, 3, 2, 1, 0)]


def test_a_round_is_put_once_however_often(store: CampaignStore):
    """The newest row of a number stands, and rows come back in their order, not in that of writing."""
    for row in (a_row(10), a_row(2), a_row(2, num_pairs=1), a_row(2, num_pairs=7)):
        store.put_round("line", row)

    assert store.rounds("line") == [a_row(2, num_pairs=7), a_row(10)]
    assert store.rounds("other") == []


def test_the_archive_is_the_newest(store: CampaignStore):
    """Whole, as it was put."""
    assert store.archive("line") is None

    store.put_archive(archive(1))
    store.put_archive(archive(2))

    assert store.archive("line") == archive(2)


def test_the_stage_is_the_one_begun_last(client: Redis):
    """Other events lie between, more of them than are read at once; one that is over is worked on by nobody."""
    log = EventLog(client)
    assert stage_of(client, "job-1") is None
    log.append("job-1", "stage", stage="sft", status="finished", seconds=1.0)
    log.append("job-1", "stage", stage="round-1", status="started")
    with client.pipeline() as pipe:
        for step in range(1200):
            pipe.xadd(events_key("job-1"), {"type": "progress", "time": "1.0", "data": f'{{"step": {step}}}'})
        pipe.execute()

    assert stage_of(client, "job-1") == "round-1"
    log.append("job-1", "stage", stage="round-1", status="finished", seconds=1.0)
    assert stage_of(client, "job-1") is None
