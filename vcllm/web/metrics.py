"""Prometheus metrics of a service: `/metrics`, and what every request adds to it.

Labels are bounded: roles, route templates and status codes; never a key, a user or a text.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from fastapi import FastAPI, Response
from fastapi.params import Depends
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.web.app import CLIENT_GONE, Service, is_work

BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def add_metrics(app: FastAPI, registry: CollectorRegistry, dependencies: Sequence[Depends] = ()) -> None:
    """`GET /metrics`, guarded by `dependencies`; requests are counted under the app's title as their role."""
    assert isinstance(app, Service), "metrics need an app made by create_service"
    app.layers.append(partial(RequestMeter, role=app.title, registry=registry))
    ProcessCollector(registry=registry)

    @app.get("/metrics", dependencies=list(dependencies), response_class=PlainTextResponse)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Tally:
    """A histogram for paths taken once per token: plain numbers, which become a metric when they are asked for.

    For one writing thread.
    """

    def __init__(self, name: str, text: str, bounds_s: Sequence[float] = BUCKETS_S) -> None:
        """bounds_s: upper bounds of the buckets, rising."""
        self.name = name
        self.text = text
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def collect(self) -> HistogramMetricFamily:
        """As Prometheus wants it: each bucket counts what the smaller ones count, too."""
        bounds = [*map(str, self.bounds_s), "+Inf"]
        buckets = list(zip(bounds, accumulate(self.counts), strict=True))
        return HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self.sum_s)


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
        if not is_work(scope):
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
