"""One way to open Redis, and the name of every key.

Redis 6.2 is the floor. A short outage is ridden out here, by retries with back-off, so that callers need not.
"""

from __future__ import annotations

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

PREFIX = "vcllm:"


def open_redis(url: str, *, patience: int = 12) -> Redis:
    """A client that retries `patience` times, up to 2 s apart, before it lets a connection error through.

    12 tries bridge a restart of about 20 s; 0 fails at once. The stores hold it as `Any`: redis-py types its
    replies for bytes and for both protocols at once, of which this client sees one kind only.
    """
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=3,
        socket_timeout=15,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=2.0, base=0.05), patience),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def job_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def lease_key(job_id: str) -> str:
    return f"{PREFIX}lease:{job_id}"


def events_key(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"


def idempotency_key(owner: str, key: str) -> str:
    return f"{PREFIX}idempotency:{owner}:{key}"


JOBS_BY_TIME = f"{PREFIX}jobs"
JOBS_RUNNING = f"{PREFIX}jobs:running"
FENCE = f"{PREFIX}fence"
KEYS = f"{PREFIX}keys"


def job_lineage_key(job_id: str) -> str:
    return f"{PREFIX}job-lineage:{job_id}"


def lineage_key(lineage: str) -> str:
    return f"{PREFIX}lineage:{lineage}"


def pairs_key(lineage: str) -> str:
    return f"{PREFIX}pairs:{lineage}"


def pairs_seen_key(lineage: str) -> str:
    return f"{PREFIX}pairs:{lineage}:seen"


def pairs_used_key(lineage: str) -> str:
    return f"{PREFIX}pairs:{lineage}:used"


def pairs_dead_key(lineage: str) -> str:
    return f"{PREFIX}pairs:{lineage}:dead"


REVIEWS = f"{PREFIX}reviews"
REVIEWS_DECIDED = f"{PREFIX}reviews:decided"
REVIEWS_PENDING = f"{PREFIX}reviews:pending"
REVIEW_IDS = f"{PREFIX}reviews:ids"


def reviews_pending_key(lineage: str) -> str:
    return f"{PREFIX}reviews:{lineage}:pending"


def reviews_decided_key(lineage: str) -> str:
    return f"{PREFIX}reviews:{lineage}:decided"


def gates_key(lineage: str) -> str:
    return f"{PREFIX}gates:{lineage}"


CAMPAIGNS_BY_TIME = f"{PREFIX}campaigns"


def campaign_key(lineage: str) -> str:
    return f"{PREFIX}campaign:{lineage}"


def campaign_rounds_key(lineage: str) -> str:
    return f"{PREFIX}campaign:{lineage}:rounds"


def campaign_archive_key(lineage: str) -> str:
    return f"{PREFIX}campaign:{lineage}:archive"


def aliases_key(role: str) -> str:
    return f"{PREFIX}aliases:{role}"


def servers_key(role: str) -> str:
    return f"{PREFIX}servers:{role}"


def server_key(role: str, server: str) -> str:
    return f"{PREFIX}server:{role}:{server}"
