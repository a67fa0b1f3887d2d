"""One way to open Redis, and the name of every key.

Redis 6.2 is the floor. A short outage is ridden out here, by retries with back-off, so that callers need not.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

PREFIX = "vcllm:"


def open_redis(url: str, *, patience: int = 12, answer_s: float | None = None) -> Redis:
    """A client that retries `patience` times, up to 2 s apart, before it lets a connection error through.

    12 tries bridge a restart of about 20 s; 0 fails at once. answer_s: see `connection_options`. The stores hold it as
    `Any`: redis-py types its replies for bytes and for both protocols at once, of which this client sees one kind only.
    """
    return Redis.from_url(url, **connection_options(patience, answer_s))


def connection_options(patience: int, answer_s: float | None = None) -> dict[str, Any]:
    """answer_s: the longest wait for an answer, for somebody who cannot wait again; None: 15 s, and as patient with a
    Redis that does not answer as with one that is gone."""
    errors = [RedisConnectionError] if answer_s is not None else [RedisConnectionError, RedisTimeoutError]
    return {
        "decode_responses": True,
        "socket_connect_timeout": min(3.0, answer_s or 3.0),
        "socket_timeout": answer_s or 15.0,
        "health_check_interval": 15,
        "retry": Retry(ExponentialBackoff(cap=2.0, base=0.05), patience, supported_errors=tuple(errors)),
        "retry_on_error": errors,
    }


def job_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def lease_key(job_id: str) -> str:
    return f"{PREFIX}lease:{job_id}"


def events_key(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"


def events_dropped_key(job_id: str) -> str:
    return f"{PREFIX}events-dropped:{job_id}"


def idempotency_key(owner: str, key: str) -> str:
    return f"{PREFIX}request:{owner}:{key}"


def idempotency_busy_key(owner: str, key: str) -> str:
    return f"{PREFIX}request-busy:{owner}:{key}"


JOBS_BY_TIME = f"{PREFIX}jobs"
JOBS_RUNNING = f"{PREFIX}jobs:running"
JOB_COUNTS = f"{PREFIX}jobs:counts"
FINE_TUNES_BY_TIME = f"{PREFIX}jobs:fine-tunes"
FENCE = f"{PREFIX}fence"
KEYS = f"{PREFIX}keys"
AUDIT = f"{PREFIX}audit"
AUDIT_HEAD = f"{PREFIX}audit:head"
FIRST_KEY = f"{PREFIX}keys:first"
KEYS_USED = f"{PREFIX}keys:used"
GATEWAYS = f"{PREFIX}gateways"


def limits_key(account: str) -> str:
    return f"{PREFIX}limits:{account}"


def usage_key(account: str, period: str) -> str:
    """period: a day (2026-11-28) or a month (2026-11)."""
    return f"{PREFIX}usage:{account}:{period}"


def gateway_key(gateway: str) -> str:
    return f"{PREFIX}gateway:{gateway}"


def job_lineage_key(job_id: str) -> str:
    return f"{PREFIX}job-lineage:{job_id}"


def file_jobs_key(file_id: str) -> str:
    return f"{PREFIX}file-jobs:{file_id}"


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


def campaign_begin_key(lineage: str) -> str:
    return f"{PREFIX}campaign:{lineage}:begin"


def campaign_rounds_key(lineage: str) -> str:
    return f"{PREFIX}campaign:{lineage}:rounds"


def campaign_archive_key(lineage: str) -> str:
    return f"{PREFIX}campaign:{lineage}:archive"


def aliases_key(role: str) -> str:
    return f"{PREFIX}aliases:{role}"


def alias_history_key(role: str) -> str:
    return f"{PREFIX}alias-history:{role}"


def servers_key(role: str) -> str:
    return f"{PREFIX}servers:{role}"


def server_key(role: str, server: str) -> str:
    return f"{PREFIX}server:{role}:{server}"
