"""Jobs: what may be asked, what a record holds, and the one table of allowed state changes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from vcllm.contracts.base import Contract, Name
from vcllm.contracts.manifests import Role
from vcllm.contracts.traces import TRACEPARENT_PATTERN

RUN_JOB = "vcllm.run_job"
"""Celery task name; its only argument is a job id."""

Queue = Literal["rollouts", "training"]


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


FINISHED = frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED})

MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.PAUSED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,  # its worker's lease ran out: somebody else carries on
            JobState.PAUSING,
            JobState.CANCELLING,
            JobState.SUCCEEDED,
            JobState.FAILED,
        }
    ),
    JobState.PAUSING: frozenset({JobState.PAUSED, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.CANCELLED: frozenset(),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),  # resumed by hand, from its last checkpoint
}


class JobRequest(Contract):
    """`POST /v1/jobs`. Recipes are named, never sent: no path or address comes from a request."""

    recipe: Name
    """A recipe the operator has installed."""
    stage: Name | None = None
    """Run this stage alone (`pretrain`, `cpt`, `sft`, `critic`, `attacker`, `round-1`, `report`, ...); None: all."""
    lineage: Name | None = None
    """Where versions and pairs belong; None: the recipe's name with its seed."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """None: the recipe's own."""


class JobCreate(JobRequest):
    """A request as sent, with what only concerns the sending."""

    validate_only: bool = False
    """Check everything, start nothing."""


class JobRecord(Contract):
    """The truth about a job; the Celery message is only a pointer to it."""

    version: Literal[1] = 1
    id: str
    kind: Literal["pipeline", "stage", "fine_tune"]
    """`pipeline` runs stages in order, `stage` is a training run it queued, `fine_tune` one on an uploaded file."""
    queue: Queue
    state: JobState
    request: dict[str, Any]
    """A `JobRequest` for a pipeline, a `StageOrder` for a stage, a `FineTune` for a fine-tuning job."""
    parent: str | None = None
    traceparent: str | None = Field(default=None, pattern=TRACEPARENT_PATTERN)
    """The place in a trace under which its work belongs: that of the request, or of the job, that made it. None in
    records from before there was one."""
    created: float
    """Unix seconds, like all times here."""
    started: float | None = None
    finished: float | None = None
    attempt: int = 0
    """How often a worker took it."""
    token: int = 0
    """The fencing token of the worker that holds it; an older one may not write."""
    error: str | None = None
    error_code: str | None = None
    """Of the problem that ended it, such as `data_invalid`; None: it has none."""
    result: dict[str, Any] = Field(default_factory=dict)
    progress: dict[str, Any] = Field(default_factory=dict)
    """The newest progress event, for whoever asks between events."""


class Gap(Contract):
    """Events that are no longer kept: whoever reads from before them misses them, and is told so."""

    until: str
    """Id of the newest one that is gone; what comes after it is complete."""
    num_gone: int = Field(ge=1)
    """Of the job's first events, so many are gone in all."""


class Checkpoint(Contract):
    """A point from which a training run can go on, or the version it came to."""

    id: str
    """`step-00000040`, or the version's name."""
    job: str
    """The job whose run it is; for a pipeline one of its stages."""
    version: Name
    """What the run makes, or has made."""
    role: Role
    step: int | None = None
    """None: not known."""
    committed: bool
    """It is a version in the model store, complete and immutable; False: a state on disk to go on from."""
    created: float
    num_bytes: int = Field(ge=0)
    loss: float | None = None


class CheckpointList(Contract):
    """`GET /v1/jobs/{id}/checkpoints`, oldest first."""

    data: list[Checkpoint]


class Event(Contract):
    """One thing that happened to a job."""

    id: str
    """Redis stream id; give it back as Last-Event-ID to carry on from there."""
    type: str
    """`state`, `stage`, `data`, `progress`, `round`, `evaluation`, `gate`, `log`."""
    time: float
    data: dict[str, Any]
