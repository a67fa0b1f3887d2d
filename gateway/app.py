"""The gateway's app: what it opens, who it lets in, and how its parts are put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.accounts import Defaults
from gateway.anchors import AnchorKeeper
from gateway.audit import AuditLayer, Auditor
from gateway.auth import SCRAPER, refuse_open_routes, scopes_by_operation
from gateway.checking import Checker
from gateway.first_key import make_first_key
from gateway.guarding.guard import Guard, build_guard
from gateway.guarding.meter import GuardMeter
from gateway.guarding.rules import Rules
from gateway.keyring import KeyRing
from gateway.lean import LeanRoute
from gateway.limits import Limits
from gateway.lookups import Lookups
from gateway.queue import CeleryQueue, JobQueue
from gateway.routes import (
    audit,
    campaigns,
    chat,
    files,
    fine_tuning,
    guard,
    jobs,
    keys,
    lineage,
    models,
    reviews,
    runs,
    servers,
    versions,
)
from gateway.settings import GatewaySettings
from gateway.sharing import Sharing
from gateway.state import GatewayState
from gateway.uploads import MAX_OVERHEAD
from vcllm.contracts.chat import ChatRequest
from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Problem, Unavailable
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_copy import copy_of
from vcllm.stores.events import EventLog
from vcllm.stores.files import FileStore
from vcllm.stores.gated import LOOK_EVERY_S, RedisGate
from vcllm.stores.jobs import JobStore
from vcllm.stores.limits import LimitStore
from vcllm.stores.models import ModelStore, NoSpace
from vcllm.web.admission import Admission
from vcllm.web.app import create_service
from vcllm.web.body import Room
from vcllm.web.breaker import BreakerState
from vcllm.web.browsers import KnownHosts, SafeReplies, cross_origin, read_hosts, read_origins
from vcllm.web.health import add_health
from vcllm.web.metrics import add_metrics
from vcllm.web.replicas import ReplicaTable
from vcllm.web.replies import problem_reply
from vcllm.web.tokens import Signer
from vcllm.web.tracing import outgoing_headers, traceparent

log = logging.getLogger(__name__)

BREAKER_STATES = {BreakerState.CLOSED: 0, BreakerState.TRYING: 1, BreakerState.OPEN: 2}
"""As the metrics tell them."""


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
    rules = Rules.load(limits.charter, settings)
    registry = CollectorRegistry()
    meter = GuardMeter(registry)
    opened: list[GatewayState] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        asks_critics = partial(_told, Signer(settings.internal_token, "gateway"), "critic")
        async with (
            build_guard(rules, settings, limits, asks_critics, meter) as guarding,
            _open(settings, limits, queue, guarding) as state,
        ):
            opened.append(state)
            yield {"gateway": state}
            opened.clear()

    app = create_service(
        "gateway",
        lifespan=lifespan,
        max_body_bytes=limits.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        room={files.UPLOAD_PATH: Room(limits.max_upload_bytes + MAX_OVERHEAD, limits.upload_timeout_s)},
    )
    app.state.draining = False
    registry.register(Upstreams(lambda: opened[0] if opened else None))

    def ready() -> str | None:
        if app.state.draining:
            return "The gateway is shutting down."
        if not opened:
            return "The gateway is starting."
        # While Redis is away chat goes on, as long as keys are trusted that were known before.
        gate = opened[0].gate
        return gate.fault if gate.away_for(limits.key_grace_s) else None

    add_health(app, ready=ready, whole=lambda: opened[0].gate.fault if opened else None)
    add_metrics(app, registry, dependencies=[SCRAPER])
    for module in (chat, models, servers, jobs, runs, campaigns, keys, lineage, reviews, audit):
        app.include_router(module.router)
    for module in (versions, files, fine_tuning, guard):
        app.include_router(module.router)
    app.include_router(files.uploads, max_body_size=limits.max_upload_bytes + MAX_OVERHEAD)
    for error in (RedisConnectionError, RedisTimeoutError):
        app.add_exception_handler(error, _stores_down)
    refuse_open_routes(app)
    lean = [route for route in chat.router.routes if isinstance(route, LeanRoute)]
    app.shortcuts = {(method, route.path): route for route in lean for method in route.methods or ()}
    app.read_by_hand, app.scopes = [ChatRequest], scopes_by_operation
    app.credential = "An API key, as `vcllm keys create` makes it; the scopes are the key's. `admin` has them all."
    app.layers.append(partial(AuditLayer, auditor=lambda: opened[0].audit if opened else None))
    app.layers.append(SafeReplies)
    if hosts := read_hosts(limits.allowed_hosts):
        app.layers.append(partial(KnownHosts, hosts=hosts))
    if origins := read_origins(limits.cors_origins):
        app.layers.append(cross_origin(origins))
    return app


def refuse_missing_secrets(settings: Settings) -> None:
    for secret, variable in (
        (settings.pepper, "VCLLM_PEPPER"),
        (settings.internal_token, "VCLLM_INTERNAL_TOKEN"),
    ):
        if not secret.get_secret_value():
            raise ValueError(f"{variable} is not set. Give it a long random string, the same on every start.")


class Upstreams(Collector):
    """Which replicas are up, and how busy each is, read when metrics are asked for."""

    def __init__(self, state: Callable[[], GatewayState | None]) -> None:
        self.state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = self.state()
        up = GaugeMetricFamily("vc_upstream_up", "1: requests are sent there.", labels=("role", "replica"))
        busy = GaugeMetricFamily("vc_upstream_inflight", "Answers not finished.", labels=("role", "replica"))
        text = "0: requests are sent there; 1: one tries; 2: none, it failed again and again."
        breaker = GaugeMetricFamily("vc_breaker_state", text, labels=("role", "replica"))
        tables = {"actor": state.actors, "critic": state.guard.critics.table} if state else {}
        for role, replica in ((role, one) for role, table in tables.items() if table for one in table.replicas):
            up.add_metric((role, replica.name), float(replica.up))
            busy.add_metric((role, replica.name), replica.in_flight)
            breaker.add_metric((role, replica.name), BREAKER_STATES[replica.breaker.state])
        yield from (up, busy, breaker)


@asynccontextmanager
async def _open(
    settings: Settings, limits: GatewaySettings, queue: JobQueue | None, guarding: Guard
) -> AsyncIterator[GatewayState]:
    gate = RedisGate(settings.redis_url)
    redis = gate.redis
    sender = queue or CeleryQueue(settings.redis_url)
    actors = ReplicaTable(
        settings.urls("actor"),
        silence_s=limits.answer_timeout_s,
        headers=partial(_told, Signer(settings.internal_token, "gateway"), "actor"),
    )
    keys = KeyRing(KeyStore(redis, settings.pepper), limits.key_ttl_s, limits.key_grace_s)
    quota = Limits(Defaults(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_chats))
    sharing = Sharing(quota, LimitStore(redis), keys.used)
    auditor = Auditor(AuditLog(redis))
    async with actors:
        state = GatewayState(
            settings=settings,
            limits=limits,
            gate=gate,
            redis=redis,
            keys=keys,
            quota=quota,
            sharing=sharing,
            audit=auditor,
            aliases=AliasStore(redis),
            actor_aliases=Lookups(limits.alias_ttl_s, limits.key_grace_s),
            models=ModelStore(settings.models),
            jobs=JobStore(redis, settings.lease_s, traceparent=traceparent),
            files=FileStore(settings.home / "files"),
            checker=Checker(),
            events=EventLog(redis),
            queue=sender,
            actors=actors,
            guard=guarding,
            door=Admission(limits.max_chats),
        )
        anchors = AnchorKeeper(auditor.store, copy_of(settings.home))
        await _say_first_key(keys.store, settings)
        beside = [asyncio.create_task(work) for work in (_watch_redis(gate), sharing.run(), anchors.keep())]
        try:
            yield state
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await auditor.close()
            sender.close()
            gate.close()


def _told(signer: Signer, role: Role) -> dict[str, str]:
    """Who asks, and in which request and trace; a probe is in none."""
    return {**signer.headers(role), **outgoing_headers()}


async def _say_first_key(keys: KeyStore, settings: Settings) -> None:
    """Printed, because it is for whoever starts the gateway; the key itself is in a file only."""
    try:
        told = await to_thread.run_sync(make_first_key, keys, settings.home)
    except (RedisError, OSError, Problem, NoSpace) as error:
        log.warning("Whether there is an API key could not be found out: %s.", type(error).__name__)
        return
    if told is not None:
        print(told, flush=True)


async def _watch_redis(gate: RedisGate) -> None:
    """Keep what is known of Redis true to the facts, without anybody waiting for it."""
    thread = CapacityLimiter(1)
    while True:
        await to_thread.run_sync(gate.look, limiter=thread, abandon_on_cancel=True)
        await asyncio.sleep(LOOK_EVERY_S)


async def _stores_down(_: Request, __: Exception) -> Response:
    return problem_reply(Unavailable("The job store does not answer. Try again in a moment.", retry_after_s=5))
