"""Fine-tuning jobs, events and checkpoints as the OpenAI API shows them, from our own records of them."""

from __future__ import annotations

import time

from vcllm.contracts.fine_tuning import (
    NOTE,
    FineTune,
    FineTuningCheckpoint,
    FineTuningError,
    FineTuningEvent,
    FineTuningJob,
    Status,
)
from vcllm.contracts.jobs import FINISHED, Event, JobRecord, JobState
from vcllm.contracts.manifests import Manifest

EVENT_PREFIX = "ftevent-"
FAILURE = "training_failed"
DATA_INVALID = "data_invalid"
"""What `vcllm.data.intake` calls a file that cannot be trained on."""
STATUSES: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSING: "running",
    JobState.PAUSED: "queued",
    JobState.CANCELLING: "running",
    JobState.CANCELLED: "cancelled",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
}
METRICS = {"loss": "train_loss", "learning_rate": "learning_rate"}


def shown_job(record: JobRecord, manifest: Manifest | None = None) -> FineTuningJob:
    """manifest: that of the version it made, where it is there."""
    asked = FineTune.model_validate(record.request)
    order, progress = asked.order, record.progress
    taking_in = record.state is JobState.RUNNING and "dataset" not in progress and "step" not in progress
    made = record.state is JobState.SUCCEEDED
    eta_s = progress.get("eta_s") if record.state is JobState.RUNNING else None
    return FineTuningJob(
        id=record.id,
        created_at=int(record.created),
        finished_at=int(record.finished) if record.finished is not None and record.state in FINISHED else None,
        estimated_finish=None if eta_s is None else int(time.time() + float(eta_s)),
        model=(order.parent or "").partition("/")[2],
        fine_tuned_model=order.version if made else None,
        status="validating_files" if taking_in else STATUSES[record.state],
        error=_error(record) if record.state is JobState.FAILED else None,
        training_file=asked.file,
        hyperparameters=asked.method.asked,
        method=asked.method,
        seed=order.seed,
        metadata=asked.metadata,
        trained_tokens=_tokens(manifest) if made else None,
        vc_status=record.state.value,
        vc_progress=progress,
        vc_note=NOTE,
    )


def shown_event(event: Event) -> FineTuningEvent:
    data = event.data
    failed = data.get("state") == JobState.FAILED
    return FineTuningEvent(
        id=f"{EVENT_PREFIX}{event.id}",
        created_at=int(event.time),
        level="error" if failed else "info",
        message=_sentence(event),
        type="metrics" if event.type == "progress" else "message",
        data={**data, **{told: data[name] for name, told in METRICS.items() if name in data}},
    )


def shown_checkpoint(job_id: str, manifest: Manifest) -> FineTuningCheckpoint:
    """The version itself: no earlier state of a run is kept once it has ended."""
    step = int(manifest.metrics.get("steps", 0))
    metrics = {"step": float(step)}
    if isinstance(loss := manifest.metrics.get("loss"), int | float):
        metrics["train_loss"] = float(loss)
    return FineTuningCheckpoint(
        id=f"ftckpt-{manifest.name}",
        created_at=int(manifest.created),
        fine_tuned_model_checkpoint=manifest.name,
        fine_tuning_job_id=job_id,
        metrics=metrics,
        step_number=step,
    )


def _error(record: JobRecord) -> FineTuningError:
    message = record.error or "It left no reason."
    if record.error_code == DATA_INVALID:
        return FineTuningError(code="invalid_training_file", message=message, param="training_file")
    return FineTuningError(code=record.error_code or FAILURE, message=message)


def _tokens(manifest: Manifest | None) -> int | None:
    """About as many as were trained on: the run tells how fast it was, and for how long."""
    metrics = manifest.metrics if manifest is not None else {}
    if not {"tokens_per_s", "train_seconds"} <= metrics.keys():
        return None
    return round(float(metrics["tokens_per_s"]) * float(metrics["train_seconds"]))


def _sentence(event: Event) -> str:
    data = event.data
    match event.type:
        case "state":
            why = data.get("error") or data.get("reason")
            return f"The job is {data.get('state')}." + (f" {why}" if why else "")
        case "progress":
            loss = f": training loss={data['loss']}" if "loss" in data else ""
            return f"Step {data.get('step', '?')}/{data.get('steps', '?')}{loss}"
        case "data":
            rows = sum(int(one.get("usable", 0)) for one in data.get("sets", []))
            return f"The training file was taken in: {rows:,} rows."
        case "log":
            return str(data.get("message", ""))
    return event.type
