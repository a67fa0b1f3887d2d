"""The reply a `Problem` becomes: its status, the OpenAI error body, and the headers that retries obey."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import Response

from vcllm.contracts.problems import Conflict, Problem, QuotaExceeded, Unauthenticated, Unprocessable, error_body


def problem_reply(problem: Problem) -> Response:
    """The status, the OpenAI error body, and the headers that the `openai` SDK's retries obey."""
    headers = dict(problem.headers)
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, round(problem.retry_after_s * 1000)))
    if problem.status in (Conflict.status, Unprocessable.status) or isinstance(problem, QuotaExceeded):
        headers["x-should-retry"] = "false"
    if problem.status == Unauthenticated.status:
        headers["www-authenticate"] = "Bearer"
    return _reply(problem.body(), problem.status, headers)


def error_reply(status: int, message: str, type_: str, code: str | None, param: str | None = None) -> Response:
    return _reply(error_body(message, type_, code, param), status, {})


def _reply(body: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    """In ASCII, because a message may quote text that cannot be encoded."""
    return Response(json.dumps(body), status, headers, media_type="application/json")
