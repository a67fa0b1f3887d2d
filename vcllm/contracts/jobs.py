"""Jobs: what may be asked, what a record holds, and the one table of allowed state changes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from vcllm.contracts.base import Contract, Name

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
    kind: Literal["pipeline", "stage"]
    """`pipeline` runs stages in order; `stage` is one training run it queued."""
    queue: Queue
    state: JobState
    request: dict[str, Any]
    """A `JobRequest` for a pipeline, a `StageOrder` for a stage."""
    parent: str | None = None
    created: float
    """Unix seconds, like all times here."""
    started: float | None = None
    finished: float | None = None
    attempt: int = 0
    """How often a worker took it."""
    token: int = 0
    """The fencing token of the worker that holds it; an older one may not write."""
    error: str | None = None
    result: dict[str, Any] = Field(default_factory=dict)
    progress: dict[str, Any] = Field(default_factory=dict)
    """The newest progress event, for whoever asks between events."""


class Event(Contract):
    """One thing that happened to a job."""

    id: str
    """Redis stream id; give it back as Last-Event-ID to carry on from there."""
    type: str
    """`state`, `stage`, `data`, `progress`, `round`, `evaluation`, `gate`, `log`."""
    time: float
    data: dict[str, Any]
