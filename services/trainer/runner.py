"""Runs one job under its lease, whatever kind it is, and gives back jobs whose worker is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis import Redis

from services.trainer.hold import Cancelled, Hold
from services.trainer.pipeline import Pipeline
from services.trainer.settings import TrainerSettings
from services.trainer.training import run_stage
from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.contracts.problems import Problem
from vcllm.settings import Settings
from vcllm.stores.connect import PREFIX, open_redis
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import IllegalMove, JobStore, StaleToken
from vcllm.stores.models import NoSpace

log = logging.getLogger(__name__)

Send = Callable[[str, str], None]
"""Puts a job id on a queue."""

RESEND_EVERY_S = 120
"""A queued job's message is sent again this often: it may have been lost with a broker."""


class Runner:
    """What a worker does with a message."""

    def __init__(self, settings: Settings, trainer: TrainerSettings, send: Send) -> None:
        self.settings, self.trainer, self.send = settings, trainer, send

    def run(self, job_id: str) -> None:
        """Run the job unless somebody else has it; its record says how it ended."""
        with open_redis(self.settings.redis_url, patience=40) as redis:
            jobs, events = JobStore(redis, self.settings.lease_s), EventLog(redis)
            record = jobs.take(job_id)
            if record is None:
                return
            events.append(job_id, "state", state=record.state.value, attempt=record.attempt)
            with Hold(jobs, record) as hold:
                state, fields = self._outcome(redis, record, hold)
                if state is not None:
                    self._finish(jobs, events, record, state, fields)

    def _outcome(self, redis: Redis, record: JobRecord, hold: Hold) -> tuple[JobState | None, dict[str, object]]:
        """The final state and what to write with it; None when the job is no longer ours."""
        try:
            if record.kind == "stage":
                return JobState.SUCCEEDED, {"result": run_stage(record, hold, redis, self.settings)}
            pipeline = Pipeline(record, hold, redis, self.settings, self.trainer, self.send)
            return JobState.SUCCEEDED, {"result": pipeline.run()}
        except Cancelled:
            return JobState.CANCELLED, {}
        except StaleToken:
            log.warning("job %s was taken over by another worker", record.id)
            return None, {}
        except (Problem, NoSpace, ValueError) as error:
            return JobState.FAILED, {"error": str(error)}
        except Exception as error:  # whatever it is, the record must say so; the log has the traceback
            log.exception("job %s failed", record.id)
            return JobState.FAILED, {"error": f"{type(error).__name__}: {error}"}

    def _finish(
        self, jobs: JobStore, events: EventLog, record: JobRecord, state: JobState, fields: dict[str, object]
    ) -> None:
        try:
            jobs.move(record.id, state, holder=record.token, **fields)
        except (IllegalMove, StaleToken):
            log.warning("job %s had already been moved on", record.id)
            return
        note = {"error": fields["error"]} if "error" in fields else {}
        events.append(record.id, "state", state=state.value, **note)


def reap(settings: Settings, trainer: TrainerSettings, send: Send) -> list[str]:
    """Give back the jobs whose worker is gone, and remind the queues of jobs that wait; the ids given back."""
    with open_redis(settings.redis_url) as redis:
        jobs, events = JobStore(redis, settings.lease_s), EventLog(redis)
        for record in jobs.recent(limit=200):
            waits = record.state is JobState.QUEUED and time.time() - record.created > RESEND_EVERY_S
            if waits and redis.set(f"{PREFIX}resent:{record.id}", 1, nx=True, ex=RESEND_EVERY_S):
                send(record.id, record.queue)
        given_back = []
        for record in jobs.lapsed():
            try:
                after = _give_back(jobs, record, trainer.max_attempts)
            except (IllegalMove, StaleToken):
                continue  # it ended, or somebody took it, while we looked
            events.append(record.id, "state", state=after.state.value, reason="its worker is gone")
            if after.state is JobState.QUEUED:
                send(record.id, record.queue)
                given_back.append(record.id)
        return given_back


def _give_back(jobs: JobStore, record: JobRecord, max_attempts: int) -> JobRecord:
    match record.state:
        case JobState.CANCELLING:
            return jobs.move(record.id, JobState.CANCELLED, holder=record.token)
        case JobState.PAUSING:
            return jobs.move(record.id, JobState.PAUSED, holder=record.token)
        case _ if record.attempt >= max_attempts:
            error = f"Given up: {record.attempt} workers vanished while they ran it. Its folder and log are kept."
            return jobs.move(record.id, JobState.FAILED, holder=record.token, error=error)
        case _:
            return jobs.move(record.id, JobState.QUEUED, holder=record.token)
