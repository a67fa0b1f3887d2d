"""Campaigns through the gateway: addressable at once, steered by name, shown with their rounds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_actor import FakeActor
from tests.gateway_world import (
    BrokenQueue,
    Gateway,
    add_version,
    error_of,
    gateway_on,
    queued_messages,
)
from tests.unit.test_campaign_rounds import a_row
from tests.unit.test_stores_campaigns import archive
from tests.unit.test_stores_reviews import item
from vcllm.charter import load_charter
from vcllm.contracts.campaigns import Campaign
from vcllm.contracts.jobs import JobState
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import GateVerdict
from vcllm.recipes import lineage_name, load_recipe
from vcllm.stores.aliases import AliasStore
from vcllm.stores.campaigns import CampaignStore
from vcllm.stores.events import EventLog
from vcllm.stores.gates import GateRecords
from vcllm.stores.reviews import ReviewStore


def start(gateway: Gateway, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    body = {"recipe": "tiny", "lineage": "line", **fields}
    return gateway[Scope.JOBS_WRITE].post("/v1/campaigns", json=body, headers=headers)


def ask(gateway: Gateway, what: str, lineage: str = "line") -> httpx.Response:
    return gateway[Scope.JOBS_WRITE].post(f"/v1/campaigns/{lineage}/{what}")


def shown(gateway: Gateway, lineage: str = "line") -> Campaign:
    return Campaign.model_validate(gateway[Scope.JOBS_READ].get(f"/v1/campaigns/{lineage}").json())


def test_a_campaign_is_there_as_soon_as_it_is_asked_for(gateway: Gateway):
    """Under the name that the trainer would give it, which its job carries; one message is sent."""
    recipe = load_recipe(gateway.settings.recipes, "tiny")

    reply = start(gateway, lineage=None, seed=3)

    assert reply.status_code == 201
    campaign = Campaign.model_validate(reply.json())
    assert campaign.lineage == lineage_name(recipe, 3, load_charter().hash)
    assert (campaign.recipe, campaign.seed, campaign.state) == ("tiny", 3, JobState.QUEUED)
    assert campaign.rounds == []
    assert shown(gateway, campaign.lineage) == campaign
    record = gateway.jobs.get(campaign.job)
    assert record.request == {"recipe": "tiny", "stage": None, "lineage": campaign.lineage, "seed": 3}
    assert len(queued_messages(gateway.redis)) == 1


def test_a_dry_run_names_the_lineage_and_starts_nothing(gateway: Gateway):
    """The stages, too."""
    reply = start(gateway, validate_only=True)

    assert reply.status_code == 200
    assert (reply.json()["lineage"], reply.json()["stages"][-3:]) == ("line", ["round-1", "control", "report"])
    assert gateway.jobs.recent() == []
    error_of(gateway[Scope.JOBS_READ].get("/v1/campaigns/line"), 404)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"recipe": "huge"}, "recipe"),
        ({"lineage": "../x"}, "lineage"),
        ({"seed": -1}, "seed"),
        ({"stage": "sft"}, "stage"),
    ],
)
def test_a_wrong_campaign_is_refused(gateway: Gateway, fields: dict[str, Any], param: str, dry: bool):
    """As a wrong job is, and nothing is stored."""
    assert error_of(start(gateway, **fields, validate_only=dry), 400)["param"] == param
    assert gateway.jobs.recent() == []
    assert gateway[Scope.JOBS_READ].get("/v1/campaigns").json() == {"data": []}


def test_a_charter_that_is_not_there_is_told_at_once(gateway: Gateway):
    """And not by a job that fails."""
    text = (gateway.settings.recipes / "tiny.toml").read_text()
    other = gateway.settings.recipes / "other.toml"
    other.write_text(text.replace('name = "tiny"', 'name = "other"\ncharter = "nowhere"'))

    error = error_of(start(gateway, recipe="other", lineage=None), 400)
    other.unlink()

    assert "There is no charter 'nowhere'" in error["message"]
    assert gateway.jobs.recent() == []


def test_a_tactic_that_the_charter_lacks_is_told_at_once(gateway: Gateway):
    """As a fault of the recipe, and not by a job that fails."""
    text = (gateway.settings.recipes / "tiny.toml").read_text()
    other = gateway.settings.recipes / "other.toml"
    other.write_text(text.replace('name = "tiny"', 'name = "other"\ntactics = ["hypnosis"]'))

    error = error_of(start(gateway, recipe="other", lineage=None), 400)
    other.unlink()

    assert "Recipe 'other' cannot be used: tactics: the charter has no tactic 'hypnosis'" in error["message"]
    assert gateway.jobs.recent() == []


def test_an_idempotency_key_makes_one_campaign(gateway: Gateway):
    """Eight at once: one job, one message; the others get the same campaign, or are told that it is being made."""
    assert gateway[Scope.JOBS_WRITE], "made before the threads ask for it"
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: start(gateway, key="once"), range(8)))
    again = start(gateway, key="once")

    assert again.status_code == 200
    assert [reply.status_code for reply in replies].count(201) == 1
    assert {reply.json()["job"] for reply in replies if reply.status_code != 409} == {again.json()["job"]}
    assert len(queued_messages(gateway.redis)) == 1
    assert error_of(start(gateway, key="once", seed=9, lineage="other"), 422)["code"] == "idempotency_conflict"


def test_a_lineage_is_played_by_one_job(gateway: Gateway):
    """A second campaign of the name is refused until the first is over; then it takes over, rounds and all."""
    first = start(gateway).json()["job"]

    error = error_of(start(gateway), 409)
    CampaignStore(gateway.redis).put_round("line", a_row(1))
    ask(gateway, "stop")
    ask(gateway, "abort")
    second = Campaign.model_validate(start(gateway).json())

    assert (error["code"], first in error["message"]) == ("campaign_busy", True)
    assert second.job != first
    assert (second.state, second.stopping, second.rounds) == (JobState.QUEUED, False, [a_row(1)])


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_at_once_one_campaign_begins(gateway: Gateway, attempt: int):
    """Each once looked whether the lineage was free before any of them had taken it, and four jobs played it."""
    assert gateway[Scope.JOBS_WRITE], "made before the threads ask for it"
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: start(gateway), range(8)))

    assert sorted(reply.status_code for reply in replies) == [201] + [409] * 7
    assert {error_of(reply, 409)["code"] for reply in replies if reply.status_code != 201} == {"campaign_busy"}
    assert [job.id for job in gateway.jobs.recent()] == [shown(gateway).job]


def test_a_campaign_that_cannot_be_queued_is_there_all_the_same(redis_url: str, tmp_path: Path):
    """It has failed, and its name is known: sent again with its key, or resumed, it is queued."""
    queue = BrokenQueue()
    with gateway_on(redis_url, tmp_path, FakeActor(), queue=queue) as gateway:
        error_of(start(gateway, key="once"), 503)
        failed = shown(gateway)
        queue.broken = False
        again = start(gateway, key="once")

    assert (failed.state, bool(failed.error)) == (JobState.FAILED, True)
    assert (again.status_code, again.json()["state"], again.json()["error"]) == (200, "queued", None)
    assert queue.sent == [failed.job]


def test_a_campaign_is_shown_with_all_that_is_known(gateway: Gateway):
    """Rounds, the stage in work, what is served, and what waits for people."""
    job = start(gateway).json()["job"]
    gateway.jobs.take(job)
    EventLog(gateway.redis).append(job, "stage", stage="round-2", status="started")
    for number in (2, 1):
        CampaignStore(gateway.redis).put_round("line", a_row(number))
    add_version(gateway.settings, "line-r1")
    AliasStore(gateway.redis).promote("actor", "line-r1")
    GateRecords(gateway.redis, "line").enter(
        "line-r2", "line-r1", GateVerdict(passed=False, checks=[], decision="hold")
    )
    ReviewStore(gateway.redis, "line").add(item(1))

    campaign = shown(gateway)

    assert (campaign.state, campaign.stage) == (JobState.RUNNING, "round-2")
    assert (campaign.served, campaign.held, campaign.reviews) == ("line-r1", ["line-r2"], 1)
    assert campaign.rounds == [a_row(1), a_row(2)]


def test_what_is_not_of_the_lineage_is_not_its_own(gateway: Gateway):
    """Another lineage's version is promoted; nobody works on a job that waits, whatever it began before."""
    job = start(gateway, lineage="other").json()["job"]
    EventLog(gateway.redis).append(job, "stage", stage="sft", status="started")
    add_version(gateway.settings, "line-r1")
    AliasStore(gateway.redis).promote("actor", "line-r1")

    campaign = shown(gateway, "other")

    assert (campaign.served, campaign.held, campaign.reviews, campaign.stage) == (None, [], 0, None)


def test_campaigns_are_listed_newest_first(gateway: Gateway):
    """Without their rounds; the time of the last one leads to the next page."""
    for number in range(3):
        start(gateway, lineage=f"line-{number}", seed=number)
    CampaignStore(gateway.redis).put_round("line-2", a_row(1))
    reader = gateway[Scope.JOBS_READ]

    first = reader.get("/v1/campaigns", params={"limit": 2}).json()["data"]
    rest = reader.get("/v1/campaigns", params={"before": first[-1]["created"]}).json()["data"]

    assert [row["lineage"] for row in first + rest] == ["line-2", "line-1", "line-0"]
    assert [row["rounds"] for row in first] == [[], []]


def test_the_archive_is_given_whole(gateway: Gateway):
    """Not before a round is done, and not to keys that only chat."""
    start(gateway)
    reader = gateway[Scope.JOBS_READ]
    early = error_of(reader.get("/v1/campaigns/line/archive"), 404)["message"]

    CampaignStore(gateway.redis).put_archive(archive(2))

    assert "once the first round is done" in early
    assert reader.get("/v1/campaigns/line/archive").json() == archive(2).model_dump(mode="json")
    error_of(gateway[Scope.CHAT].get("/v1/campaigns/line/archive"), 403)


def test_a_campaign_is_paused_and_resumed_by_name(gateway: Gateway):
    """Its job is; what a job would refuse is refused."""
    job = start(gateway).json()["job"]

    assert ask(gateway, "pause").json()["state"] == "paused"
    assert gateway.jobs.get(job).state is JobState.PAUSED
    assert ask(gateway, "resume").json()["state"] == "queued"
    error_of(ask(gateway, "resume"), 409)


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.PAUSED, JobState.FAILED])
def test_the_word_to_stop_waits_for_whoever_plays(gateway: Gateway, state: JobState):
    """The job goes on as it was; the trainer finds the word, and a pause or a failure does not make it forgotten."""
    job = start(gateway).json()["job"]
    if state is JobState.PAUSED:
        ask(gateway, "pause")
    elif state is not JobState.QUEUED:
        gateway.jobs.take(job)
    if state is JobState.FAILED:
        gateway.jobs.move(job, JobState.FAILED, error="out of memory")

    first, again = ask(gateway, "stop").json(), ask(gateway, "stop").json()

    assert first == again
    assert (first["state"], first["stopping"]) == (state, True)
    assert CampaignStore(gateway.redis).stop_asked("line")
    if state in (JobState.PAUSED, JobState.FAILED):
        assert ask(gateway, "resume").json()["stopping"] is True


def test_what_is_over_is_not_stopped(gateway: Gateway):
    """It says what the campaign is; and a word that was given before is not shown any more."""
    start(gateway)
    ask(gateway, "stop")
    aborted = ask(gateway, "abort").json()

    error = error_of(ask(gateway, "stop"), 409)

    assert (aborted["state"], aborted["stopping"]) == ("cancelled", False)
    assert error["message"].startswith("Campaign 'line' is cancelled")


def test_a_running_campaign_is_aborted_at_once(gateway: Gateway):
    """By cancelling its job; rounds that are done stay."""
    job = start(gateway).json()["job"]
    gateway.jobs.take(job)
    CampaignStore(gateway.redis).put_round("line", a_row(1))

    aborted = Campaign.model_validate(ask(gateway, "abort").json())

    assert (aborted.state, aborted.rounds) == (JobState.CANCELLING, [a_row(1)])
    error_of(ask(gateway, "stop"), 409)


@pytest.mark.parametrize("what", ["pause", "resume", "stop", "abort"])
def test_steering_needs_a_name_that_exists_and_a_key_that_may(gateway: Gateway, what: str):
    """Whoever may read jobs only, may only read."""
    start(gateway)

    assert "There is no campaign 'nowhere'" in error_of(ask(gateway, what, "nowhere"), 404)["message"]
    error_of(gateway[Scope.JOBS_READ].post(f"/v1/campaigns/line/{what}"), 403)
    assert shown(gateway).state is JobState.QUEUED
