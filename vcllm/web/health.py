"""Health that tells the truth: alive, started, and ready for work are three questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from vcllm.contracts.base import Contract

Check = Callable[[], str | None]
"""None: all is well; otherwise a sentence that says what is missing. Must not block."""


class Health(Contract):
    """The reply of each of the three."""

    status: Literal["ok", "degraded", "unavailable"]
    """degraded: it serves, but not all it could."""
    detail: str | None = None
    """What is missing; absent when all is well."""


UNWELL: dict[int | str, dict[str, Any]] = {503: {"model": Health}}


def well() -> None:
    """The check of what is well as long as it answers."""


def add_health(app: FastAPI, ready: Check, started: Check = well, live: Check = well, whole: Check = well) -> None:
    """`GET /health/live`, `/health/ready` and `/health/startup`, open to everybody.

    ready: it can serve now. started: it knows what it can serve. live: it can become well without a new process.
    whole: when it is ready, it can do all it should.
    """

    @app.get("/health/live", response_model=Health, responses=UNWELL)
    async def is_live() -> JSONResponse:
        return _reply(live())

    @app.get("/health/ready", response_model=Health, responses=UNWELL)
    async def is_ready() -> JSONResponse:
        return _reply(ready(), whole())

    @app.get("/health/startup", response_model=Health, responses=UNWELL)
    async def has_started() -> JSONResponse:
        return _reply(started())


def _reply(problem: str | None, lack: str | None = None) -> JSONResponse:
    if problem is not None:
        return JSONResponse({"status": "unavailable", "detail": problem}, 503)
    if lack is not None:
        return JSONResponse({"status": "degraded", "detail": lack})
    return JSONResponse({"status": "ok"})
