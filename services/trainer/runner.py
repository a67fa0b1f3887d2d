"""Runs one job under its lease, whatever kind it is, and gives back jobs whose worker is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis import Redis

from services.trainer.finetune import fine_tune
from services.trainer.hold import Hold, Interrupted
from services.trainer.pipeline import Pipeline
from services.trainer.settings import TrainerSettings
from services.trainer.training import run_stage
from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.contracts.problems import NotFound, Problem
from vcllm.contracts.recipes import StageOrder
from vcllm.settings import Settings
from vcllm.stores.connect import PREFIX, open_redis
from vcllm.stores.events import EventLog
from vcllm.stores.job_counts import JobCounts
from vcllm.stores.jobs import IllegalMove, JobStore, StaleToken
from vcllm.stores.models import NoSpace
from vcllm.web.tracing import Attributes, note, span

if TYPE_CHECKING:
    from vcllm.web.otel import Recorder

log = logging.getLogger(__name__)

Send = Callable[[str, str], None]
"""Puts a job id on a queue."""


class Runner:
    """What a worker does with a message."""

    def __init__(
        self,
        settings: Settings,
        trainer: TrainerSettings,
        send: Send,
        draining: Callable[[], bool] = lambda: False,
        recorder: Recorder | None = None,
    ) -> None:
        """recorder: of the jobs' spans; None: nobody records."""
        self.settings, self.trainer, self.send, self.draining = settings, trainer, send, draining
        self.recorder = recorder

    def run(self, job_id: str) -> None:
        """Run the job unless somebody else has it; its record says how it ended."""
        with open_redis(self.settings.redis_url, patience=40) as redis:
            jobs, events = JobStore(redis, self.settings.lease_s), EventLog(redis)
            if self.draining():
                self._pass_on(jobs, job_id)
                return
            record = jobs.take(job_id)
            if record is None:
                return
            JobCounts(redis).add(attempts=1)
            events.append(job_id, "state", state=record.state.value, attempt=record.attempt)
            with self._traced(record), Hold(jobs, record, self.draining) as hold:
                state, fields = self._outcome(redis, record, hold)
                note({"vc.job.state": "lost" if state is None else state.value})
                if state is not None:
                    self._finish(jobs, events, record, state, fields)

    @contextmanager
    def _traced(self, record: JobRecord) -> Iterator[None]:
        """Under the request that made the job, also after a crash; sent when the job is left, for a pool process may be
        killed at any time."""
        told: Attributes = {
            "messaging.destination.name": record.queue,
            "vc.job": record.id,
            "vc.job.kind": record.kind,
            "vc.job.attempt": record.attempt,
        }
        try:
            with span(f"job {record.kind}", told, kind="consumer", above=record.traceparent, recorder=self.recorder):
                yield
        finally:
            if self.recorder is not None:
                self.recorder.flush()

    def _pass_on(self, jobs: JobStore, job_id: str) -> None:
        """Celery hands out what it had fetched before it was told to end."""
        with suppress(NotFound):
            record = jobs.get(job_id)
            if record.state is JobState.QUEUED:
                self.send(record.id, record.queue)

    def _outcome(self, redis: Redis, record: JobRecord, hold: Hold) -> tuple[JobState | None, dict[str, Any]]:
        """The next state and what to write with it; None when the job is no longer ours."""
        try:
            if record.kind == "stage":
                order = StageOrder.model_validate(record.request)
                result = run_stage(record, order, hold, redis, self.settings, self.trainer)
                return JobState.SUCCEEDED, {"result": result}
            if record.kind == "fine_tune":
                return JobState.SUCCEEDED, {"result": fine_tune(record, hold, redis, self.settings, self.trainer)}
            pipeline = Pipeline(record, hold, redis, self.settings, self.trainer, self.send)
            return JobState.SUCCEEDED, {"result": pipeline.run()}
        except Interrupted as reason:
            log.info("job %s is left: %s", record.id, type(reason).__name__)
            return JobState.QUEUED, {"attempt": record.attempt - 1}
        except StaleToken:
            log.warning("job %s was taken over by another worker", record.id)
            return None, {}
        except (Problem, NoSpace, ValueError) as error:
            return JobState.FAILED, {"error": str(error), "error_code": getattr(error, "code", None)}
        except Exception as error:  # whatever it is, the record must say so; the log has the traceback
            log.exception("job %s failed", record.id)
            return JobState.FAILED, {"error": f"{type(error).__name__}: {error}"}

    def _finish(
        self, jobs: JobStore, events: EventLog, record: JobRecord, state: JobState, fields: dict[str, Any]
    ) -> None:
        try:
            if state is JobState.QUEUED:
                after = jobs.leave(record.id, holder=record.token, **fields)
            else:
                after = jobs.move(record.id, state, holder=record.token, **fields)
        except (IllegalMove, StaleToken):
            log.warning("job %s had already been moved on", record.id)
            return
        note = {"error": fields["error"]} if "error" in fields else {}
        events.append(record.id, "state", state=after.state.value, **note)
        if after.state is JobState.QUEUED:
            self.send(record.id, record.queue)


def reap(settings: Settings, trainer: TrainerSettings, send: Send) -> list[str]:
    """Give back the jobs whose worker is gone, and remind the queues of jobs that wait; the ids given back."""
    with open_redis(settings.redis_url) as redis:
        jobs, events = JobStore(redis, settings.lease_s), EventLog(redis)
        for record in jobs.recent(limit=200):
            waits = record.state is JobState.QUEUED and time.time() - record.created > trainer.resend_every_s
            if waits and redis.set(f"{PREFIX}resent:{record.id}", 1, nx=True, px=int(1000 * trainer.resend_every_s)):
                send(record.id, record.queue)
        given_back, counts = [], JobCounts(redis)
        counts.looked()
        for record in jobs.lapsed():
            try:
                after = _give_back(jobs, record, trainer.max_attempts)
            except (IllegalMove, StaleToken):
                continue  # it ended, or somebody took it, while we looked
            counts.add(leases_lost=1)
            events.append(record.id, "state", state=after.state.value, reason="its worker is gone")
            if after.state is JobState.QUEUED:
                send(record.id, record.queue)
                given_back.append(record.id)
        return given_back


def _give_back(jobs: JobStore, record: JobRecord, max_attempts: int) -> JobRecord:
    if record.attempt < max_attempts:
        return jobs.leave(record.id, holder=record.token)
    error = f"Given up: {record.attempt} workers vanished while they ran it. Its folder and log are kept."
    return jobs.leave(record.id, holder=record.token, to=JobState.FAILED, error=error)
