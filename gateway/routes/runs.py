"""What a job's training runs have left so far: checkpoints, and the end of the log, once or as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse

from gateway.auth import JobReader, KeyFirst
from gateway.runfiles import Run, checkpoints_of, log_after, log_tail, run_of
from gateway.state import GatewayState, State
from vcllm.contracts.base import Name
from vcllm.contracts.jobs import FINISHED, CheckpointList, JobRecord
from vcllm.contracts.problems import NotFound
from vcllm.web.openapi import STREAMED
from vcllm.web.sse import frame, stream_response

router = APIRouter(prefix="/v1/jobs", route_class=KeyFirst)

MAX_LINES = 5000
POLL_S = 0.5
"""How often a followed log is looked at."""


@router.get("/{job_id}/checkpoints")
def list_checkpoints(job_id: str, key: JobReader, state: State) -> CheckpointList:
    """Of every run of the job, oldest first: states on disk to go on from, and versions that are committed."""
    found = [one for run in _runs(state, job_id) for one in checkpoints_of(run, state.models)]
    return CheckpointList(data=sorted(found, key=lambda one: one.created))


@router.get("/{job_id}/logs", response_class=PlainTextResponse, responses=STREAMED)
async def job_logs(
    job_id: str,
    request: Request,
    key: JobReader,
    state: State,
    lines: Annotated[int, Query(ge=1, le=MAX_LINES)] = 200,
    version: Name | None = None,
    stream: bool = False,
) -> Response:
    """The last lines that a training run wrote; with `stream`, also what it writes from now on, as events.

    version: the run that makes this version; else a pipeline's newest one that has begun.
    """
    run = await to_thread.run_sync(_chosen, state, job_id, version)
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        frames = _follow(request.app, state, run, lines)
        return stream_response(frames, keep_alive_s=state.settings.keep_alive_s)
    tail = await to_thread.run_sync(log_tail, run, lines)
    return PlainTextResponse(tail.text)


def _runs(state: GatewayState, job_id: str) -> list[Run]:
    """Newest first; a run that was done again by a later job is that job's."""
    record = state.jobs.get(job_id)
    records = [record] if record.kind != "pipeline" else _begun(state.jobs.recent(parent=job_id, limit=1000))
    runs = [run for one in records if (run := run_of(one, state.settings)) is not None]
    by_version = {(run.order.role, run.order.version): run for run in reversed(runs)}
    return [run for run in runs if by_version[run.order.role, run.order.version] is run]


def _begun(records: list[JobRecord]) -> list[JobRecord]:
    return [record for record in records if record.started is not None]


def _chosen(state: GatewayState, job_id: str, version: str | None) -> Run:
    runs = _runs(state, job_id)
    wanted = [run for run in runs if version is None or run.order.version == version]
    if not wanted:
        known = ", ".join(run.order.version for run in runs) or "none yet"
        raise NotFound(f"Job '{job_id}' has no such training run. Its runs make: {known}.", param="version")
    return wanted[0]


async def _follow(app: FastAPI, state: GatewayState, run: Run, lines: int) -> AsyncIterator[bytes]:
    """A frame for each piece that is written, until the run's job has finished and all of it was sent."""
    piece = await to_thread.run_sync(log_tail, run, lines)
    if piece.text:
        yield frame(piece.text.removesuffix("\n"), event="log")
    while not app.state.draining:
        record = await to_thread.run_sync(state.jobs.get, run.job)  # first, so that the last words are not missed
        piece = await to_thread.run_sync(log_after, run, piece)
        if piece.text:
            yield frame(piece.text.removesuffix("\n"), event="log")
        elif record.state in FINISHED:
            return
        else:
            await asyncio.sleep(POLL_S)
