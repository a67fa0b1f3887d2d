"""Training jobs: asked for, watched, stopped, resumed. The record is the truth, the queue points to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from pydantic import Field

from gateway.auth import JobReader, JobWriter, KeyFirst
from gateway.once import IdempotencyKey, once
from gateway.state import GatewayState, State
from vcllm.contracts.base import Contract, Name
from vcllm.contracts.fine_tuning import FineTune
from vcllm.contracts.jobs import FINISHED, Event, Gap, JobCreate, JobRecord, JobRequest, JobState, Queue
from vcllm.contracts.problems import BadRequest, Conflict, NotFound, Unavailable
from vcllm.recipes import load_recipe, stage_names
from vcllm.stores.connect import pairs_key
from vcllm.stores.idempotency import Claim
from vcllm.stores.ledger import check_ledger
from vcllm.stores.pairs import PairStream
from vcllm.web.openapi import STREAMED
from vcllm.web.sse import frame, stream_response

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", route_class=KeyFirst)

POLL_S = 0.25
"""How often a followed job is looked at."""
LAST_EVENT_GRACE_S = 10.0
"""How long a follower waits for the last event of a job that has finished."""
NOTHING_NEW = "Asked for before, or `validate_only`."
"""Why a request that makes a job is answered with 200."""
NOTHING_MORE: dict[int | str, dict[str, Any]] = {204: {"description": "It has finished, and all of it was read."}}


class JobPlan(Contract):
    """The reply to `validate_only`: what would run."""

    valid: bool = True
    recipe: Name
    stages: list[str]


class JobList(Contract):
    """`GET /v1/jobs`, newest first."""

    data: list[JobRecord]
    before: float | None = Field(default=None, description="Ask with this for the next page; None: it was the last.")


class EventList(Contract):
    """`GET /v1/jobs/{id}/events`, oldest first."""

    data: list[Event]
    after: str | None = Field(default=None, description="Ask with this for newer events.")
    gap: Gap | None = None
    """Events between the point that was asked for and the first one here are gone; None: none is missing."""


class PairCounts(Contract):
    """`GET /v1/pairs/{lineage}`."""

    lineage: Name
    waiting: int
    """Approved, not yet used by a committed version."""
    used: int
    dead: int
    """Given up after too many deliveries without a result."""
    faults: list[str] = Field(
        description="What does not add up between stream, ledger and manifests; empty: all is well."
    )


@router.post(
    "/jobs",
    status_code=201,
    response_model=JobRecord | JobPlan,
    responses={200: {"model": JobRecord | JobPlan, "description": NOTHING_NEW}},
)
def create_job(
    body: JobCreate,
    key: JobWriter,
    state: State,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobRecord | JobPlan:
    """Check, store, queue. The same Idempotency-Key with the same request gives back the first job.

    422 for the key with another request, 409 while the first one is being worked on.
    """
    recipe = load_recipe(state.settings.recipes, body.recipe)
    stages = stage_names(recipe)
    if body.stage is not None and body.stage not in stages:
        raise BadRequest(
            f"Recipe '{body.recipe}' has no stage '{body.stage}'. Its stages are: {', '.join(stages)}.",
            param="stage",
        )
    if body.validate_only:
        response.status_code = 200
        return JobPlan(recipe=body.recipe, stages=[body.stage] if body.stage else stages)
    request = JobRequest(**body.model_dump(exclude={"validate_only"}))
    with once(state, key.id, idempotency_key, "jobs", request) as claim:
        record, new = store_job(state, claim, request, queue="rollouts")
        return start_job(state, claim, record, new, response)


@router.get("/jobs")
def list_jobs(
    key: JobReader,
    state: State,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
    parent: str | None = None,
) -> JobList:
    """before: only jobs created before this time. parent: only the stages of this job."""
    records = state.jobs.recent(limit=limit, before=before, parent=parent)
    return JobList(data=records, before=records[-1].created if len(records) == limit else None)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, key: JobReader, state: State) -> JobRecord:
    return state.jobs.get(job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, key: JobWriter, state: State) -> JobRecord:
    """A waiting job ends at once, a running one within seconds; a finished one stays as it is."""
    before = state.jobs.get(job_id)
    record = state.jobs.ask_cancel(job_id)
    if record.state is not before.state:
        state.note_state(record)
    return record


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, key: JobWriter, state: State) -> JobRecord:
    """A waiting job waits on, a running one stops at a checkpoint within seconds; a finished one stays as it is."""
    before = state.jobs.get(job_id)
    _refuse_stage(before)
    record = state.jobs.ask_pause(job_id)
    if record.state is not before.state:
        state.note_state(record)
    return record


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, key: JobWriter, state: State) -> JobRecord:
    """Queue a failed or paused job again; it goes on from its last checkpoint."""
    record = state.jobs.get(job_id)
    _refuse_stage(record)
    if record.state not in (JobState.FAILED, JobState.PAUSED):
        raise Conflict(f"Job '{job_id}' is {record.state}; only failed and paused jobs can be resumed.")
    return queue_job(state, _queue_again(state, record))


@router.get("/jobs/{job_id}/events", response_model=EventList, responses=STREAMED | NOTHING_MORE)
async def job_events(
    job_id: str,
    request: Request,
    key: JobReader,
    state: State,
    after: str | None = None,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> EventList | Response:
    """What happened after an event, as a list; or live, as server-sent events, to the end of the job.

    Complete and in order; where older events are no longer kept, `gap` says so, or an event of that type.
    """
    start = last_event_id or after or "0"
    record = await to_thread.run_sync(state.jobs.get, job_id)
    replay = await to_thread.run_sync(state.events.replay, job_id, start)
    events = replay.events
    if not stream and "text/event-stream" not in request.headers.get("accept", ""):
        return EventList(data=events, after=events[-1].id if events else None, gap=replay.gap)
    if last_event_id is not None and record.state in FINISHED and not events:
        return Response(status_code=204)  # tells an EventSource not to come back
    frames = _follow(request.app, state, job_id, start)
    return stream_response(frames, keep_alive_s=state.settings.keep_alive_s)


@router.get("/pairs/{lineage}")
def pair_counts(lineage: Name, key: JobReader, state: State) -> PairCounts:
    """How many approved pairs of a lineage wait, were used, or were given up, and whether the books agree."""
    if not state.redis.exists(pairs_key(lineage)):
        raise NotFound(f"There is no lineage '{lineage}' with approved pairs yet.")
    check = check_ledger(PairStream(state.redis, lineage), state.models)
    return PairCounts(lineage=lineage, waiting=check.waiting, used=check.used, dead=check.dead, faults=check.faults)


def store_job(
    state: GatewayState, claim: Claim, request: JobRequest | FineTune, queue: Queue
) -> tuple[JobRecord, bool]:
    """The claimed job, and whether it is new."""
    if claim.is_done:
        return state.jobs.get(claim.job), False
    return state.jobs.create(request, queue=queue, job_id=claim.job)


def start_job(state: GatewayState, claim: Claim, record: JobRecord, new: bool, response: Response) -> JobRecord:
    """Queue what `store_job` gave; a job that was asked for before is left alone, and the status is 200.

    One that never reached the queue, or of which nobody can say, is queued again: a worker takes a job once only.
    """
    if new:
        return queue_job(state, record)
    response.status_code = 200
    if record.state is JobState.FAILED and record.attempt == 0:
        return queue_job(state, _queue_again(state, record))
    if record.state is JobState.QUEUED and not claim.is_done:  # whoever stored it died before it could send
        return queue_job(state, record)
    return record


async def _follow(app: FastAPI, state: GatewayState, job_id: str, after: str) -> AsyncIterator[bytes]:
    """Frames of every event after `after`; ends after the event of the job's final state.

    Ends, too, when this server drains: a follower comes back and carries on at another one.
    """
    clock = asyncio.get_running_loop().time
    final_seen, finished_since = False, None
    while not app.state.draining:
        record = await to_thread.run_sync(state.jobs.get, job_id)
        replay = await to_thread.run_sync(state.events.replay, job_id, after)
        if replay.gap is not None:
            after = replay.gap.until
            yield frame(replay.gap, event="gap", id=after)
        if events := replay.events:
            after = events[-1].id
            states = [event.data.get("state") for event in events if event.type == "state"]
            final_seen = states[-1] in FINISHED if states else final_seen
            yield b"".join(frame(event, event=event.type, id=event.id) for event in events)
            continue
        if record.state not in FINISHED:
            finished_since = None
        elif final_seen or clock() - (finished_since := finished_since or clock()) > LAST_EVENT_GRACE_S:
            return
        await asyncio.sleep(POLL_S)


def _refuse_stage(record: JobRecord) -> None:
    """A pipeline pauses and resumes its stages; one of them alone would leave it waiting."""
    if record.kind == "stage":
        raise Conflict(f"Job '{record.id}' is one stage of '{record.parent}'. Pause or resume that job instead.")


def _queue_again(state: GatewayState, record: JobRecord) -> JobRecord:
    return state.jobs.move(record.id, JobState.QUEUED, error=None, error_code=None, finished=None, attempt=0)


def queue_job(state: GatewayState, record: JobRecord) -> JobRecord:
    """Queue a stored job; one that cannot be queued is failed, so that nothing waits for ever."""
    state.note_state(record)
    try:
        state.queue.send(record)
    except Exception as error:
        log.exception("Job %s could not be queued.", record.id)
        failed = state.jobs.move(
            record.id, JobState.FAILED, error="It could not be queued: the broker does not answer."
        )
        state.note_state(failed)
        raise Unavailable(
            f"Job '{record.id}' could not be queued. Resume it, or send it again, in a moment.",
            retry_after_s=5,
        ) from error
    return record
