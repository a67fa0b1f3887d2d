"""Health that tells the truth: alive, started, and ready for work are three questions."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import JSONResponse

Check = Callable[[], str | None]
"""None: all is well; otherwise a sentence that says what is missing. Must not block."""


def add_health(app: FastAPI, ready: Check, started: Check | None = None) -> None:
    """`GET /health/live`, `/health/ready` and `/health/startup`, open to everybody.

    started: None: up as soon as it answers.
    """

    @app.get("/health/live")
    async def live() -> JSONResponse:
        return _reply(None)

    @app.get("/health/ready")
    async def is_ready() -> JSONResponse:
        return _reply(ready())

    @app.get("/health/startup")
    async def has_started() -> JSONResponse:
        return _reply(started() if started else None)


def _reply(problem: str | None) -> JSONResponse:
    if problem is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "detail": problem}, 503)
