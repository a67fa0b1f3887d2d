"""Prometheus metrics of a service: `/metrics`, and what every request adds to it.

Labels are bounded: roles, route templates and status codes; never a key, a user or a text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI, Response
from fastapi.params import Depends
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.web.app import CLIENT_GONE, Service

BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def add_metrics(app: FastAPI, registry: CollectorRegistry, dependencies: Sequence[Depends] = ()) -> None:
    """`GET /metrics`, guarded by `dependencies`; requests are counted under the app's title as their role."""
    assert isinstance(app, Service), "metrics need an app made by create_service"
    app.layers.append(partial(RequestMeter, role=app.title, registry=registry))

    @app.get("/metrics", dependencies=list(dependencies))
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RequestMeter:
    """Counts and times requests; health and metrics routes are left out."""

    def __init__(self, app: ASGIApp, role: str, registry: CollectorRegistry) -> None:
        self.app = app
        self.role = role
        labels = ("role", "route")
        text = "Time to the last byte of the answer."
        self.seconds = Histogram("vc_request_seconds", text, labels, registry=registry, buckets=BUCKETS_S)
        self.total = Counter("vc_requests_total", "Requests answered.", (*labels, "code"), registry=registry)
        inflight = Gauge("vc_inflight", "Requests being answered.", ("role",), registry=registry)
        self.inflight = inflight.labels(role)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/metrics" or scope["path"].startswith("/health/"):
            return await self.app(scope, receive, send)
        code = CLIENT_GONE

        async def note_code(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        begun = time.perf_counter()
        self.inflight.inc()
        try:
            await self.app(scope, receive, note_code)
        finally:
            self.inflight.dec()
            route = getattr(scope.get("route"), "path", "other")
            self.total.labels(self.role, route, str(code)).inc()
            self.seconds.labels(self.role, route).observe(time.perf_counter() - begun)
