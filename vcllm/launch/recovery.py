"""Jobs whose worker went down with an earlier fleet: set free, and taken up again at once."""

from __future__ import annotations

from vcllm.contracts.jobs import REAP_JOBS
from vcllm.stores.connect import JOBS_RUNNING, lease_key, open_redis


def forget_leases(url: str) -> int:
    """Drop the leases in a private Redis that has just started: nobody can hold them; how many there were.

    Without this, their jobs would be taken up only once the leases have lapsed.
    """
    with open_redis(url) as redis:
        keys = [lease_key(job_id) for job_id in redis.smembers(JOBS_RUNNING)]
        if keys:
            redis.delete(*keys)
        return len(keys)


def ask_to_reap(url: str) -> None:
    """Have jobs without a lease queued again now, rather than at the reaper's next round."""
    # Imported here: only a launch after an interruption needs it.
    from celery import Celery

    with Celery("launcher", broker=url, set_as_current=False) as celery:
        celery.send_task(REAP_JOBS, queue="rollouts", ignore_result=True)
