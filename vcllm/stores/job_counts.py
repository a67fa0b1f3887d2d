"""Jobs, queues and pairs in figures, for whoever watches over an installation.

What is counted over time stands in Redis beside the jobs: a process that is killed with its job, or replaced after it,
would take its own counts along. Everything else is read from the records when it is asked for. Nothing is changed.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from redis import Redis

from vcllm.contracts.jobs import JobRecord, JobState, Queue
from vcllm.stores.connect import (
    CAMPAIGNS_BY_TIME,
    JOB_COUNTS,
    JOBS_BY_TIME,
    JOBS_RUNNING,
    job_key,
    pairs_dead_key,
    pairs_key,
    pairs_used_key,
)

QUEUES: tuple[Queue, ...] = get_args(Queue)
NEWEST_JOBS = 1000
"""Of older jobs only those that run are counted."""
NEWEST_LINEAGES = 20
_HEAD_BYTES = 255
"""Of a record, in which its state stands, before what was asked for: that may be large."""
_STATE = re.compile(r'"state":"(\w+)"')


@dataclass(frozen=True)
class PairCount:
    """The approved pairs of a lineage."""

    lineage: str
    pending: int
    """Not yet used by a committed version."""
    dead: int
    """Given up after too many deliveries."""


@dataclass(frozen=True)
class JobFigures:
    """One look."""

    states: Mapping[JobState, int]
    """Of the newest jobs and all that run; every state is there."""
    waited_s: float
    """Since the oldest of the queued ones was made; 0: none is queued."""
    queued: Mapping[Queue, int]
    """Messages that no worker has taken. A job may have none, or several."""
    attempts: int
    """Jobs taken by a worker, ever."""
    leases_lost: int
    """Jobs whose worker was gone, ever."""
    looks: int
    """Of the reaper, ever."""
    looked: float | None
    """Unix seconds of its last look; None: it has never looked."""
    pairs: Sequence[PairCount]
    """Of the newest lineages."""


class JobCounts:
    """Reads the figures, and counts what only happens once."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    def add(self, *, attempts: int = 0, leases_lost: int = 0) -> None:
        with self.redis.pipeline() as pipe:
            for name, number in (("attempts", attempts), ("leases_lost", leases_lost)):
                if number:
                    pipe.hincrby(JOB_COUNTS, name, number)
            pipe.execute()

    def looked(self) -> None:
        """The reaper has begun a look."""
        with self.redis.pipeline() as pipe:
            pipe.hincrby(JOB_COUNTS, "looks", 1)
            pipe.hset(JOB_COUNTS, "looked", repr(time.time()))
            pipe.execute()

    def read(self) -> JobFigures:
        """Three round trips, whatever there is."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.zrevrange(JOBS_BY_TIME, 0, NEWEST_JOBS - 1, withscores=True)
            pipe.smembers(JOBS_RUNNING)
            pipe.hgetall(JOB_COUNTS)
            pipe.zrevrange(CAMPAIGNS_BY_TIME, 0, NEWEST_LINEAGES - 1)
            for queue in QUEUES:
                pipe.llen(queue)
            newest, running, counts, lineages, *lengths = pipe.execute()
        created = dict(newest)
        states = self._states([*created, *(running - created.keys())])
        waiting = [created[job] for job, state in states.items() if state is JobState.QUEUED and job in created]
        number = Counter(states.values())
        return JobFigures(
            states={state: number[state] for state in JobState},
            waited_s=max(0.0, time.time() - min(waiting)) if waiting else 0.0,
            queued=dict(zip(QUEUES, lengths, strict=True)),
            attempts=int(counts.get("attempts", 0)),
            leases_lost=int(counts.get("leases_lost", 0)),
            looks=int(counts.get("looks", 0)),
            looked=float(counts["looked"]) if "looked" in counts else None,
            pairs=self._pairs(lineages),
        )

    def _states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        with self.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.getrange(job_key(job), 0, _HEAD_BYTES)
            heads = dict(zip(jobs, pipe.execute(), strict=True))
        found = {job: _STATE.search(head) for job, head in heads.items() if head}
        return {job: JobState(state[1]) if state else self._whole(job) for job, state in found.items()}

    def _whole(self, job: str) -> JobState:
        return JobRecord.model_validate_json(self.redis.get(job_key(job))).state

    def _pairs(self, lineages: Sequence[str]) -> list[PairCount]:
        with self.redis.pipeline(transaction=False) as pipe:
            for lineage in lineages:
                pipe.xlen(pairs_key(lineage))
                pipe.hlen(pairs_used_key(lineage))
                pipe.xlen(pairs_dead_key(lineage))
            rows = pipe.execute()
        told = zip(lineages, rows[::3], rows[1::3], rows[2::3], strict=True)
        return [PairCount(lineage, max(0, all_ - used - dead), dead) for lineage, all_, used, dead in told]
