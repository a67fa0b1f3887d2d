"""Job records, leases and fencing tokens: the only writer of a job's state.

A worker that runs a job holds its lease and renews it. Whoever lost the lease has an old token, and every
write that matters is checked against the newest one, so a worker that wakes up late changes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Literal

from redis import Redis
from redis.exceptions import WatchError

from vcllm.contracts.fine_tuning import FineTune
from vcllm.contracts.jobs import FINISHED, MOVES, JobRecord, JobRequest, JobState, Queue
from vcllm.contracts.problems import Conflict, NotFound
from vcllm.contracts.recipes import StageOrder
from vcllm.contracts.traces import new_traceparent
from vcllm.stores.connect import (
    FENCE,
    FINE_TUNES_BY_TIME,
    JOBS_BY_TIME,
    JOBS_RUNNING,
    file_jobs_key,
    job_key,
    lease_key,
)

HELD = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
"""States in which a worker holds the job's lease."""


class StaleToken(Exception):
    """The writer's lease was lost and somebody else holds the job: stop, write nothing."""


class IllegalMove(Conflict):
    """The transition table does not allow this change of state."""


class JobStore:
    """Jobs in Redis: one JSON record each, a time index and a set of those that run."""

    def __init__(
        self, redis: Redis, lease_s: float = 60.0, *, traceparent: Callable[[], str] = new_traceparent
    ) -> None:
        """traceparent: says where in which trace a job that is created belongs."""
        self.redis: Any = redis
        self.lease_s = lease_s
        self.traceparent = traceparent

    def create(
        self,
        request: JobRequest | StageOrder | FineTune,
        *,
        queue: Queue,
        parent: str | None = None,
        job_id: str | None = None,
    ) -> tuple[JobRecord, bool]:
        """The record, and whether it is new: a job of this id that is there already is given back as it is.

        job_id: see `new_job_id`; None: a fresh one.
        """
        record = JobRecord(
            id=job_id or new_job_id(),
            kind=_kind_of(request),
            queue=queue,
            state=JobState.QUEUED,
            request=request.model_dump(mode="json"),
            parent=parent,
            traceparent=self.traceparent(),
            created=time.time(),
        )
        indices = [JOBS_BY_TIME, *([FINE_TUNES_BY_TIME] if isinstance(request, FineTune) else [])]
        users = [file_jobs_key(request.file)] if isinstance(request, FineTune) else []
        keys = [job_key(record.id), *indices, *users]
        new = self.redis.eval(
            _CREATE, len(keys), *keys, record.model_dump_json(), record.id, record.created, len(indices)
        )
        return (record, True) if new else (self.get(record.id), False)

    def has(self, job_id: str) -> bool:
        return bool(self.redis.exists(job_key(job_id)))

    def get(self, job_id: str) -> JobRecord:
        raw = self.redis.get(job_key(job_id))
        if raw is None:
            raise NotFound(f"There is no job '{job_id}'. `GET /v1/jobs` lists those that exist.")
        return JobRecord.model_validate_json(raw)

    def recent(self, *, limit: int = 20, before: float | None = None, parent: str | None = None) -> list[JobRecord]:
        """Newest first. `before`: only jobs created before this time. `parent`: only this job's stages."""
        top = "+inf" if before is None else f"({before}"
        if parent is None:
            ids = self.redis.zrevrangebyscore(JOBS_BY_TIME, top, "-inf", start=0, num=limit)
            return self._read(ids)
        ids = self.redis.zrevrangebyscore(JOBS_BY_TIME, top, "-inf")
        return [record for record in self._read(ids) if record.parent == parent][:limit]

    def fine_tunes(self, limit: int, after: str | None = None) -> list[JobRecord]:
        """Fine-tuning jobs, newest first; after: only those that come after this job in the list. NotFound for it."""
        start = 0
        if after is not None:
            place = self.redis.zrevrank(FINE_TUNES_BY_TIME, after)
            if place is None:
                raise NotFound(f"There is no fine-tuning job '{after}' to go on after.", param="after")
            start = int(place) + 1
        return self._read(self.redis.zrevrange(FINE_TUNES_BY_TIME, start, start + limit - 1))

    def unfinished_of_file(self, file_id: str) -> list[str]:
        """Ids of fine-tuning jobs that still need an uploaded file, or may."""
        ids = sorted(self.redis.smembers(file_jobs_key(file_id)))
        return [record.id for record in self._read(ids) if record.state not in FINISHED]

    def move(self, job_id: str, to: JobState, *, holder: int | None = None, **fields: Any) -> JobRecord:
        """Change state and `fields` together, or raise and change nothing.

        A job that is queued again belongs to nobody: its lease ends, and whoever held it has an old token.
        `holder`: the writer's fencing token; StaleToken when a newer one has taken the job.
        """
        if to is JobState.QUEUED:
            fields["token"] = self.redis.incr(FENCE)

        def change(record: JobRecord) -> JobRecord:
            if to not in MOVES[record.state]:
                raise IllegalMove(f"Job '{job_id}' is {record.state}; it cannot become {to}.", code="illegal_move")
            times = {"finished": time.time()} if to in FINISHED else {}
            return record.model_copy(update={"state": to, **times, **fields})

        return self._update(job_id, change, holder)

    def update(self, job_id: str, *, holder: int | None = None, **fields: Any) -> JobRecord:
        """Write fields other than the state."""
        assert "state" not in fields, "states change through move(), which checks the table"
        return self._update(job_id, lambda record: record.model_copy(update=fields), holder)

    def take(self, job_id: str) -> JobRecord | None:
        """Lease a queued job and make it `running`, or None when it is not ours to run."""
        token = self.redis.incr(FENCE)
        if not self.redis.set(lease_key(job_id), token, nx=True, px=int(self.lease_s * 1000)):
            return None
        try:
            record = self.get(job_id)
            return self.move(
                job_id,
                JobState.RUNNING,
                token=token,
                attempt=record.attempt + 1,
                started=record.started or time.time(),
            )
        except (IllegalMove, NotFound):
            self.release(job_id, token)
            return None

    def renew(self, job_id: str, token: int) -> None:
        """Hold the lease for another term; StaleToken when somebody else holds, or held, the job since.

        A lease that lapsed unnoticed (a long stall, a Redis restart) is taken again while nobody else has it.
        """
        keys = (lease_key(job_id), job_key(job_id))
        if not self.redis.eval(_RENEW, 2, *keys, token, int(self.lease_s * 1000)):
            raise StaleToken(job_id)

    def release(self, job_id: str, token: int) -> None:
        self.redis.eval(_RELEASE, 1, lease_key(job_id), token)

    def check(self, job_id: str, token: int) -> None:
        """Raise StaleToken unless `token` is the newest that holds the job."""
        if self.get(job_id).token != token:
            raise StaleToken(job_id)

    def leave(self, job_id: str, *, holder: int, to: JobState = JobState.QUEUED, **fields: Any) -> JobRecord:
        """End the holder's work on a job: cancelled or paused where that was asked for, else `to` with `fields`.

        Whatever the holder still writes afterwards is refused.
        """
        token = self.redis.incr(FENCE)

        def change(record: JobRecord) -> JobRecord:
            asked = {JobState.CANCELLING: JobState.CANCELLED, JobState.PAUSING: JobState.PAUSED}.get(record.state)
            state = asked or to
            if state not in MOVES[record.state]:
                raise IllegalMove(f"Job '{job_id}' is {record.state}; it cannot become {state}.", code="illegal_move")
            changed = {} if asked else fields
            times = {"finished": time.time()} if state in FINISHED else {}
            return record.model_copy(update={"state": state, "token": token, **times, **changed})

        return self._update(job_id, change, holder)

    def ask_cancel(self, job_id: str) -> JobRecord:
        """Queued and paused jobs end at once; a running one is told, and ends within seconds. So do its stages."""

        def change(record: JobRecord) -> JobRecord:
            if record.state in FINISHED:
                return record
            if record.state in (JobState.QUEUED, JobState.PAUSED):
                return record.model_copy(update={"state": JobState.CANCELLED, "finished": time.time()})
            return record.model_copy(update={"state": JobState.CANCELLING})

        return self._ask(job_id, change, JobState.CANCELLING, JobState.CANCELLED)

    def ask_pause(self, job_id: str) -> JobRecord:
        """A queued job waits at once; a running one is told, and does within seconds. So do its stages.

        Nothing changes for a job that has finished or is about to.
        """

        def change(record: JobRecord) -> JobRecord:
            to = {JobState.QUEUED: JobState.PAUSED, JobState.RUNNING: JobState.PAUSING}.get(record.state)
            return record if to is None else record.model_copy(update={"state": to})

        return self._ask(job_id, change, JobState.PAUSING, JobState.PAUSED)

    def _ask(self, job_id: str, change: Callable[[JobRecord], JobRecord], *done: JobState) -> JobRecord:
        """The job first: a worker that sees one of its stages stopped finds out why."""
        record = self._update(job_id, change, holder=None)
        if record.kind == "pipeline" and record.state in done:
            for stage in self.recent(parent=job_id, limit=1000):
                if stage.state not in FINISHED:
                    self._update(stage.id, change, holder=None)
        return record

    def lapsed(self) -> list[JobRecord]:
        """Jobs that should be running but whose lease ran out: their worker is gone."""
        ids = list(self.redis.smembers(JOBS_RUNNING))
        return [record for record in self._read(ids) if not self.redis.exists(lease_key(record.id))]

    def _update(self, job_id: str, change: Callable[[JobRecord], JobRecord], holder: int | None) -> JobRecord:
        key = job_key(job_id)
        with self.redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(key)
                    raw = pipe.get(key)
                    if raw is None:
                        raise NotFound(f"There is no job '{job_id}'.")
                    before = JobRecord.model_validate_json(raw)
                    if holder is not None and before.token != holder:
                        raise StaleToken(job_id)
                    after = change(before)
                    pipe.multi()
                    pipe.set(key, after.model_dump_json())
                    if after.state is JobState.QUEUED and before.state is not JobState.QUEUED:
                        pipe.delete(lease_key(job_id))
                    (pipe.sadd if after.state in HELD else pipe.srem)(JOBS_RUNNING, job_id)
                    pipe.execute()
                    return after
                except WatchError:
                    continue  # somebody wrote between our read and our write: look again

    def _read(self, ids: Iterable[str]) -> list[JobRecord]:
        names = [job_key(job_id) for job_id in ids]
        raws = self.redis.mget(names) if names else []
        return [JobRecord.model_validate_json(raw) for raw in raws if raw is not None]


def new_job_id() -> str:
    return f"job-{uuid.uuid4().hex[:16]}"


def _kind_of(request: JobRequest | StageOrder | FineTune) -> Literal["pipeline", "stage", "fine_tune"]:
    if isinstance(request, JobRequest):
        return "pipeline"
    return "fine_tune" if isinstance(request, FineTune) else "stage"


_CREATE = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX') then return 0 end
for i = 2, #KEYS do
  if i <= 1 + tonumber(ARGV[4]) then redis.call('ZADD', KEYS[i], ARGV[3], ARGV[2])
  else redis.call('SADD', KEYS[i], ARGV[2]) end
end
return 1
"""
_RENEW = """
local job = redis.call('GET', KEYS[2])
if not job or cjson.decode(job).token ~= tonumber(ARGV[1]) then return 0 end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
