"""One span for each request that a service answers, where traces are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.web.app import CLIENT_GONE, Service, is_work
from vcllm.web.tracing import Attributes, request_id, span

if TYPE_CHECKING:
    from vcllm.web.otel import Recorder

PROVIDER = "vc_llm"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/embeddings": "embeddings",
}
"""Paths of calls to a model, with what they are called in OpenTelemetry's conventions."""
REPLY_HEADERS = {
    b"x-vc-version": "gen_ai.response.model",
    b"x-vc-replica": "vc.replica",
    b"x-vc-verdict": "vc.verdict",
}


def add_tracing(app: FastAPI, recorder: Recorder | None) -> None:
    """Record the requests of an app; None: nobody records, and nothing is added."""
    assert isinstance(app, Service), "spans need an app made by create_service"
    if recorder is not None:
        app.layers.append(partial(RequestSpans, recorder=recorder))


class RequestSpans:
    """Health checks and scrapes are left out; of a request its method, route and id are told, and nothing else."""

    def __init__(self, app: ASGIApp, recorder: Recorder) -> None:
        self.app = app
        self.recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            return await self.app(scope, receive, send)
        method, operation = scope["method"], OPERATIONS.get(scope["path"])
        told: Attributes = {
            "http.request.method": method,
            "vc.request_id": request_id.get(),
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": None if operation is None else PROVIDER,
        }
        status = CLIENT_GONE
        with span(method, told, kind="server", recorder=self.recorder) as opened:
            assert opened is not None, "a recorder was given"

            async def note_head(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    opened.note(_of_reply(message))
                await send(message)

            try:
                await self.app(scope, receive, note_head)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                opened.rename(f"{method} {route}")
                error = str(status) if status >= 500 else None
                opened.note({"http.route": route, "http.response.status_code": status, "error.type": error})


def _of_reply(message: Message) -> Mapping[str, str]:
    return {REPLY_HEADERS[name]: value.decode("latin-1") for name, value in message["headers"] if name in REPLY_HEADERS}
