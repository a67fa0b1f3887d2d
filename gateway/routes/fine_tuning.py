"""Fine-tuning as the OpenAI API has it: supervised or DPO, on an uploaded file, from a version of the Actor.

A job is one of ours (`GET /v1/jobs/{id}` shows it, too). What it makes is a version like any other, which nobody is
served by itself.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from gateway.auth import JobReader, JobWriter, KeyFirst
from gateway.fine_tuning.requests import USES, find_parent, settle
from gateway.fine_tuning.views import EVENT_PREFIX, shown_checkpoint, shown_event, shown_job
from gateway.once import IdempotencyKey, once, still_at_work
from gateway.routes import jobs
from gateway.state import GatewayState, State
from vcllm.contracts.files import FileCheck, InvalidRows, Use
from vcllm.contracts.fine_tuning import (
    FineTune,
    FineTuningCheckpointList,
    FineTuningCreate,
    FineTuningEventList,
    FineTuningJob,
    FineTuningJobList,
)
from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import NotFound
from vcllm.stores.idempotency import Claim
from vcllm.stores.models import NoSpace

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=KeyFirst)

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
def create_job(
    body: FineTuningCreate,
    key: JobWriter,
    state: State,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> FineTuningJob:
    """Check the file for the method, settle everything, store, queue. 400 lists every fault of the file by line."""
    with once(state, key.id, idempotency_key, "fine_tuning", body) as claim:
        if claim.is_done or state.jobs.has(claim.job):
            record, new = state.jobs.get(claim.job), False
        else:
            record, new = _store(body, key.id, state, claim)
        return shown_job(jobs.start_job(state, claim, record, new, response))


@router.get("")
def list_jobs(
    request: Request, key: JobReader, state: State, after: str | None = None, limit: Limit = 20
) -> FineTuningJobList:
    """Newest first. after: the id of the last job of the page before. `metadata[k]=v` finds those that have it."""
    wanted = _wanted_metadata(request)
    found: list[JobRecord] = []
    while len(found) <= limit:
        page = state.jobs.fine_tunes(100, after)
        found += [record for record in page if _has_metadata(record, wanted)]
        if len(page) < 100:
            break
        after = page[-1].id
    return FineTuningJobList(data=[_shown(state, one) for one in found[:limit]], has_more=len(found) > limit)


@router.get("/{job_id}")
def get_job(job_id: str, key: JobReader, state: State) -> FineTuningJob:
    return _shown(state, _fine_tune(state, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, key: JobWriter, state: State) -> FineTuningJob:
    """A waiting job ends at once, a running one within seconds; a finished one stays as it is."""
    _fine_tune(state, job_id)
    return _shown(state, jobs.cancel_job(job_id, key, state))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, key: JobWriter, state: State) -> FineTuningJob:
    """It stops at a checkpoint within seconds and uses nothing; its status is `queued`, its `vc_status` `paused`."""
    _fine_tune(state, job_id)
    return _shown(state, jobs.pause_job(job_id, key, state))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, key: JobWriter, state: State) -> FineTuningJob:
    """Queue a paused or failed job again; it goes on from its last checkpoint."""
    _fine_tune(state, job_id)
    return _shown(state, jobs.resume_job(job_id, key, state))


@router.get("/{job_id}/events")
def list_events(
    job_id: str, key: JobReader, state: State, after: str | None = None, limit: Limit = 20
) -> FineTuningEventList:
    """Newest first. after: the id of the last event of the page before, so the next page is older."""
    _fine_tune(state, job_id)
    before = None if after is None else after.removeprefix(EVENT_PREFIX)
    events = state.events.newest(job_id, before, limit=limit + 1)
    shown = [shown_event(event) for event in events[:limit]]
    gap = state.events.replay(job_id, limit=1).gap
    return FineTuningEventList(data=shown, has_more=len(events) > limit, vc_num_gone=gap.num_gone if gap else 0)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, key: JobReader, state: State, after: str | None = None, limit: Limit = 10
) -> FineTuningCheckpointList:
    """The version, once it is there; where a run stands in between: `GET /v1/jobs/{id}/checkpoints`."""
    manifest = _made(state, _fine_tune(state, job_id))
    shown = [] if manifest is None or after is not None else [shown_checkpoint(job_id, manifest)]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return FineTuningCheckpointList(data=shown, first_id=first, last_id=last)


def _store(body: FineTuningCreate, owner: str, state: GatewayState, claim: Claim) -> tuple[JobRecord, bool]:
    parent = find_parent(state, body.model)
    check = _checked(state, body.training_file, USES[body.how.type], claim)
    fine_tune = settle(body, parent, check, job=claim.job, owner=owner)
    record, new = jobs.store_job(state, claim, fine_tune, queue="training")
    try:
        state.files.confirm(body.training_file)  # looked up last: from now on nobody can delete it
    except NotFound:
        state.jobs.move(record.id, JobState.FAILED, error="Its training file was deleted.", attempt=1)
        raise
    return record, new


def _checked(state: GatewayState, file_id: str, use: Use, claim: Claim) -> FileCheck:
    """What is known of the file for this use; InvalidRows when no job can take it."""
    try:
        record = state.files.get(file_id)
    except NotFound as error:
        error.param = "training_file"
        raise
    check = state.files.check(file_id, use) or _found(state, file_id, use, claim)
    if not check.is_usable:
        raise InvalidRows(check.sentence(record.filename), "training_file", check.faults, check.num_faults)
    return check


def _found(state: GatewayState, file_id: str, use: Use, claim: Claim) -> FileCheck:
    """Read the file, unless somebody whose turn was before has done so."""
    with state.checker.turn(lambda: still_at_work(state, claim)) as turn:
        if (known := state.files.check(file_id, use)) is not None:
            return known
        check = turn.check(state.files.content(file_id), use)
        with suppress(NoSpace, OSError):  # it only saves the next job the reading
            state.files.put_check(file_id, check)
        return check


def _fine_tune(state: GatewayState, job_id: str) -> JobRecord:
    record = state.jobs.get(job_id)
    if record.kind != "fine_tune":
        raise NotFound(f"Job '{job_id}' is no fine-tuning job. GET /v1/jobs/{{id}} shows it.")
    return record


def _made(state: GatewayState, record: JobRecord) -> Manifest | None:
    """The version a job has made; None: it is not there, or not any more."""
    version = FineTune.model_validate(record.request).order.version
    done = record.state is JobState.SUCCEEDED and state.models.has("actor", version)
    return state.models.manifest("actor", version) if done else None


def _shown(state: GatewayState, record: JobRecord) -> FineTuningJob:
    return shown_job(record, _made(state, record))


def _wanted_metadata(request: Request) -> dict[str, str]:
    """From `metadata[key]=value`, as the API writes a filter."""
    return {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }


def _has_metadata(record: JobRecord, wanted: dict[str, str]) -> bool:
    metadata = record.request.get("metadata") or {}
    return all(metadata.get(name) == value for name, value in wanted.items())
