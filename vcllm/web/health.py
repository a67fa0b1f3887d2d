"""Health that tells the truth: alive, started, and ready for work are three questions."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import JSONResponse

Check = Callable[[], str | None]
"""None: all is well; otherwise a sentence that says what is missing. Must not block."""


def well() -> None:
    """The check of what is well as long as it answers."""


def add_health(app: FastAPI, ready: Check, started: Check = well, live: Check = well) -> None:
    """`GET /health/live`, `/health/ready` and `/health/startup`, open to everybody.

    ready: it can serve now. started: it knows what it can serve. live: it can become well without a new process.
    """

    @app.get("/health/live")
    async def is_live() -> JSONResponse:
        return _reply(live())

    @app.get("/health/ready")
    async def is_ready() -> JSONResponse:
        return _reply(ready())

    @app.get("/health/startup")
    async def has_started() -> JSONResponse:
        return _reply(started())


def _reply(problem: str | None) -> JSONResponse:
    if problem is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "detail": problem}, 503)
