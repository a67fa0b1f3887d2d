"""Passes what a training run says on to those who follow its job."""

from __future__ import annotations

from typing import Any

from redis import Redis

from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.recipes import StageOrder
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import JobStore


class Relay:
    """Passes progress on to the job's events, its record, and the pipeline it belongs to."""

    def __init__(self, record: JobRecord, order: StageOrder, redis: Redis, lease_s: float) -> None:
        self.record = record
        self.stage = stage_label(order)
        self.events = EventLog(redis)
        self.jobs = JobStore(redis, lease_s)

    def __call__(self, progress: dict[str, Any]) -> None:
        """Whatever the run says, unchanged; StaleToken, and nothing said, when the job is somebody else's by now."""
        data = {"stage": self.stage, **progress}
        self.jobs.update(self.record.id, holder=self.record.token, progress=data)
        self._tell("progress", data)

    def say(self, message: str) -> None:
        """A sentence for whoever follows the job."""
        self.jobs.check(self.record.id, self.record.token)
        self._tell("log", {"stage": self.stage, "message": message})

    def _tell(self, type_: str, data: dict[str, Any]) -> None:
        for job_id in (self.record.id, self.record.parent):
            if job_id is not None:
                self.events.append(job_id, type_, **data)


def stage_label(order: StageOrder) -> str:
    """What a person calls the stage: `sft`, `round-2`, `round-2 attacker`."""
    if order.round == 0:
        return order.version.rsplit("-", 1)[-1] if order.stage.stage == "sft" else order.stage.stage
    return f"round-{order.round}" + (" attacker" if order.role == "attacker" else "")
