"""Jobs whose worker went down with an earlier fleet: set free, so that the reaper finds them as soon as it starts."""

from __future__ import annotations

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
