"""The gateway's app: what it opens, who it lets in, and how its parts are put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.audit import AuditLayer
from gateway.auth import SCRAPER, refuse_open_routes, scopes_by_operation
from gateway.fine_tuning.uploads import MAX_OVERHEAD
from gateway.guarding.guard import build_guard
from gateway.guarding.meter import GuardMeter
from gateway.guarding.rules import Rules
from gateway.lean import LeanRoute
from gateway.metrics import Door, Upstreams
from gateway.opening import open_state, told
from gateway.queue import JobQueue
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
from gateway.state import GatewayState
from vcllm.contracts.chat import ChatRequest
from vcllm.contracts.problems import Unavailable
from vcllm.settings import Settings
from vcllm.web.app import Service, create_service
from vcllm.web.body import Room
from vcllm.web.browsers import KnownHosts, SafeReplies, cross_origin, read_hosts, read_origins
from vcllm.web.health import add_health
from vcllm.web.metrics import add_metrics
from vcllm.web.replies import problem_reply
from vcllm.web.tokens import Signer

MODULES = (
    chat,
    models,
    servers,
    jobs,
    runs,
    campaigns,
    keys,
    lineage,
    reviews,
    audit,
    versions,
    files,
    fine_tuning,
    guard,
)
"""Of routes."""


def create_app(
    settings: Settings | None = None,
    limits: GatewaySettings | None = None,
    *,
    queue: JobQueue | None = None,
) -> FastAPI:
    """settings, limits: None: from the environment. queue: None: Celery on the settings' Redis.

    ValueError when a secret is missing or the charter cannot be used.
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
        asks_critics = partial(told, Signer(settings.internal_token, "gateway"), "critic")
        async with (
            build_guard(rules, settings, limits, asks_critics, meter) as guarding,
            open_state(settings, limits, queue, guarding) as state,
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
    for collector in (Upstreams, Door):
        registry.register(collector(lambda: opened[0] if opened else None))
    add_metrics(app, registry, dependencies=[SCRAPER])
    _add_health(app, opened, limits.key_grace_s)
    _add_routes(app, limits)
    _add_layers(app, opened, limits)
    return app


def _add_health(app: Service, opened: list[GatewayState], key_grace_s: float) -> None:
    """While Redis is away it is ready for chat, as long as keys are trusted that were known before."""

    def ready() -> str | None:
        if app.state.draining:
            return "The gateway is shutting down."
        if not opened:
            return "The gateway is starting."
        return opened[0].gate.fault if opened[0].gate.away_for(key_grace_s) else None

    add_health(app, ready=ready, whole=lambda: opened[0].gate.fault if opened else None)


def _add_routes(app: Service, limits: GatewaySettings) -> None:
    """AssertionError when one of them names no scope."""
    for module in MODULES:
        app.include_router(module.router)
    app.include_router(files.uploads, max_body_size=limits.max_upload_bytes + MAX_OVERHEAD)
    for error in (RedisConnectionError, RedisTimeoutError):
        app.add_exception_handler(error, _stores_down)
    refuse_open_routes(app)
    lean = [route for route in chat.router.routes if isinstance(route, LeanRoute)]
    app.shortcuts = {(method, route.path): route for route in lean for method in route.methods or ()}
    app.read_by_hand, app.scopes = [ChatRequest], scopes_by_operation
    app.credential = "An API key, as `vcllm keys create` makes it; the scopes are the key's. `admin` has them all."


def _add_layers(app: Service, opened: list[GatewayState], limits: GatewaySettings) -> None:
    """Innermost first."""
    app.layers.append(partial(AuditLayer, auditor=lambda: opened[0].audit if opened else None))
    app.layers.append(SafeReplies)
    if hosts := read_hosts(limits.allowed_hosts):
        app.layers.append(partial(KnownHosts, hosts=hosts))
    if origins := read_origins(limits.cors_origins):
        app.layers.append(cross_origin(origins))


def refuse_missing_secrets(settings: Settings) -> None:
    for secret, variable in (
        (settings.pepper, "VCLLM_PEPPER"),
        (settings.internal_token, "VCLLM_INTERNAL_TOKEN"),
    ):
        if not secret.get_secret_value():
            raise ValueError(f"{variable} is not set. Give it a long random string, the same on every start.")


async def _stores_down(_: Request, __: Exception) -> Response:
    return problem_reply(Unavailable("The job store does not answer. Try again in a moment.", retry_after_s=5))
