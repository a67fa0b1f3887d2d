"""What a scrape of a worker or of the reaper is told: jobs, queues and pairs as Redis has them, and this process.

All of them tell the same of the jobs, so whoever scrapes several takes the largest. Nothing is counted in the pool
processes of a worker: they come and go with jobs, and the process that is scraped would not know of it. That one is the
worker's main process, which runs no jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from services.trainer.settings import TrainerSettings
from vcllm.settings import Settings
from vcllm.stores.connect import open_redis
from vcllm.stores.job_counts import JobCounts, JobFigures

log = logging.getLogger(__name__)


class JobCollector(Collector):
    """Looks when it is asked, so nothing here can go stale; while Redis is away it says only that."""

    def __init__(self, redis: Redis) -> None:
        self.counts = JobCounts(redis)

    def collect(self) -> Iterator[Metric]:
        try:
            figures = self.counts.read()
        except (RedisError, OSError):
            yield _store_up(False)
            return
        yield _store_up(True)
        yield from _of_jobs(figures)
        yield from _of_pairs(figures)


def registry_of(redis: Redis) -> CollectorRegistry:
    """Everything that is told."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(JobCollector(redis))
    return registry


def serve_metrics(settings: Settings, trainer: TrainerSettings) -> None:
    """Tell them on the port that is set, in a thread, for as long as this process lives; nowhere when none is set.

    A port that is taken is no reason not to work: it is said in the log.
    """
    if trainer.metrics_port is None:
        return
    registry = registry_of(open_redis(settings.redis_url, patience=0))
    try:
        start_http_server(trainer.metrics_port, trainer.metrics_host, registry)
    except OSError as error:
        where = f"{trainer.metrics_host}:{trainer.metrics_port}"
        log.warning("No metrics: %s cannot be opened (%s). Set TRAINER_METRICS_PORT.", where, error.strerror)
        return
    log.info("Metrics are on port %d.", trainer.metrics_port)


def _store_up(up: bool) -> Metric:
    return GaugeMetricFamily("vc_job_store_up", "1: Redis tells about jobs.", value=float(up))


def _of_jobs(figures: JobFigures) -> Iterator[Metric]:
    states = GaugeMetricFamily("vc_job_state", "Jobs by state, of the newest 1000 and all that run.", labels=("state",))
    for state, number in figures.states.items():
        states.add_metric((state.value,), number)
    lengths = GaugeMetricFamily("vc_job_queue_length", "Messages that no worker has taken.", labels=("queue",))
    for queue, length in figures.queued.items():
        lengths.add_metric((queue,), length)
    yield from (states, lengths)
    yield GaugeMetricFamily("vc_job_waited_seconds", "Age of the oldest queued job.", value=figures.waited_s)
    yield CounterMetricFamily("vc_job_attempts", "Jobs taken by a worker.", value=figures.attempts)
    yield CounterMetricFamily("vc_lease_lost", "Jobs whose worker was gone.", value=figures.leases_lost)
    yield CounterMetricFamily("vc_reaper_looks", "How often the reaper looked.", value=figures.looks)
    looked = GaugeMetricFamily("vc_reaper_looked_timestamp_seconds", "When the reaper looked last.")
    if figures.looked is not None:
        looked.add_metric((), figures.looked)
    yield looked


def _of_pairs(figures: JobFigures) -> Iterator[Metric]:
    pending = GaugeMetricFamily("vc_pairs_pending", "Approved pairs that no version has used.", labels=("lineage",))
    dead = GaugeMetricFamily("vc_pairs_dead", "Approved pairs that were given up.", labels=("lineage",))
    for one in figures.pairs:
        pending.add_metric((one.lineage,), one.pending)
        dead.add_metric((one.lineage,), one.dead)
    yield from (pending, dead)
