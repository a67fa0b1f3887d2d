"""The `Problem` that an error reply carries; needs no web framework, so every client can use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vcllm.contracts.problems import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    Overloaded,
    Problem,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
    retry_after,
)

_BY_STATUS: dict[int, type[Problem]] = {
    kind.status: kind
    for kind in (Unauthenticated, Forbidden, NotFound, Conflict, Overloaded, Unavailable, DeadlineExceeded)
}


def problem_of(status: int, body: bytes, headers: Mapping[str, str]) -> Problem:
    """What an error reply says, as the exception it was made from."""
    error = _error_object(body)
    kind = _BY_STATUS.get(status, BadRequest if status < 500 else UpstreamFailed)
    problem = kind(
        str(error.get("message") or f"The server answered {status} without saying why."),
        param=error.get("param"),
        code=error.get("code"),
        retry_after_s=retry_after(headers),
    )
    if status < 500:
        problem.status, problem.type = status, str(error.get("type", problem.type))
    return problem


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
