"""The gateway's app: what it opens, who it lets in, and how its parts are put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.auth import SCRAPER, refuse_open_routes
from gateway.keyring import KeyRing
from gateway.lookups import Lookups
from gateway.queue import CeleryQueue, JobQueue
from gateway.routes import campaigns, chat, jobs, keys, lineage, models, reviews, servers
from gateway.settings import GatewaySettings
from gateway.state import GatewayState
from vcllm.contracts.problems import Unavailable
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.connect import open_redis
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore
from vcllm.web.admission import Admission
from vcllm.web.app import create_service
from vcllm.web.health import add_health
from vcllm.web.metrics import add_metrics
from vcllm.web.replicas import ReplicaTable
from vcllm.web.replies import problem_reply

PING_EVERY_S = 2.0


def create_app(
    settings: Settings | None = None,
    limits: GatewaySettings | None = None,
    *,
    queue: JobQueue | None = None,
) -> FastAPI:
    """settings, limits: None: from the environment. queue: None: Celery on the settings' Redis.

    ValueError when a secret is missing.
    """
    settings = settings or Settings()
    limits = limits or GatewaySettings()
    refuse_missing_secrets(settings)
    opened: list[GatewayState] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with _open(settings, limits, queue) as state:
            opened.append(state)
            yield {"gateway": state}
            opened.clear()

    app = create_service(
        "gateway",
        lifespan=lifespan,
        max_body_bytes=limits.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
    )
    app.state.draining = False
    registry = CollectorRegistry()
    registry.register(Upstreams(lambda: opened[0] if opened else None))
    add_health(app, ready=lambda: opened[0].redis_fault if opened else "The gateway is starting.")
    add_metrics(app, registry, dependencies=[SCRAPER])
    for module in (chat, models, servers, jobs, campaigns, keys, lineage, reviews):
        app.include_router(module.router)
    for error in (RedisConnectionError, RedisTimeoutError):
        app.add_exception_handler(error, _stores_down)
    refuse_open_routes(app)
    return app


def refuse_missing_secrets(settings: Settings) -> None:
    for secret, variable in (
        (settings.pepper, "VCLLM_PEPPER"),
        (settings.internal_token, "VCLLM_INTERNAL_TOKEN"),
    ):
        if not secret.get_secret_value():
            raise ValueError(f"{variable} is not set. Give it a long random string, the same on every start.")


class Upstreams(Collector):
    """Which Actor replicas are up, and how busy each is, read when metrics are asked for."""

    def __init__(self, state: Callable[[], GatewayState | None]) -> None:
        self.state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = self.state()
        up = GaugeMetricFamily("vc_upstream_up", "1: requests are sent there.", labels=("role", "replica"))
        busy = GaugeMetricFamily("vc_upstream_inflight", "Answers not finished.", labels=("role", "replica"))
        for replica in state.actors.replicas if state else ():
            up.add_metric(("actor", replica.name), float(replica.up))
            busy.add_metric(("actor", replica.name), replica.in_flight)
        yield from (up, busy)


@asynccontextmanager
async def _open(settings: Settings, limits: GatewaySettings, queue: JobQueue | None) -> AsyncIterator[GatewayState]:
    redis = open_redis(settings.redis_url, patience=1)
    sender = queue or CeleryQueue(settings.redis_url)
    actors = ReplicaTable(
        settings.urls("actor"),
        timeout=httpx.Timeout(limits.answer_timeout_s, connect=5),
        headers={
            "authorization": f"Bearer {settings.internal_token.get_secret_value()}",
            "accept-encoding": "identity",
        },
    )
    async with actors:
        state = GatewayState(
            settings=settings,
            limits=limits,
            redis=redis,
            keys=KeyRing(KeyStore(redis, settings.pepper), limits.key_ttl_s, limits.key_grace_s),
            aliases=AliasStore(redis),
            actor_aliases=Lookups(limits.alias_ttl_s, limits.key_grace_s),
            models=ModelStore(settings.models),
            jobs=JobStore(redis, settings.lease_s),
            events=EventLog(redis),
            queue=sender,
            actors=actors,
            door=Admission(limits.max_chats),
        )
        watch = asyncio.create_task(_watch_redis(state))
        try:
            yield state
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            sender.close()
            redis.close()


async def _watch_redis(state: GatewayState) -> None:
    """Keep `redis_fault` true to the facts, without anybody waiting for Redis."""
    thread = CapacityLimiter(1)
    while True:
        try:
            await to_thread.run_sync(state.redis.ping, limiter=thread)
            state.redis_fault = None
        except (RedisError, OSError) as error:
            state.redis_fault = f"Redis does not answer: {type(error).__name__}."
        await asyncio.sleep(PING_EVERY_S)


async def _stores_down(_: Request, __: Exception) -> Response:
    return problem_reply(Unavailable("The job store does not answer. Try again in a moment.", retry_after_s=5))
