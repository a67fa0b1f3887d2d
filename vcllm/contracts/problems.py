"""Wrong input and refused service, as an exception a user can act on and as the OpenAI error body.

Status codes follow what the `openai` SDK expects; a service turns a `Problem` into a reply in one place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Problem(Exception):
    """One sentence that says what is wrong and what to do, with the HTTP status it becomes."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """headers: what the reply says beside the body, in lower case."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.type, self.code, self.param)


def error_body(message: str, type_: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The error body of the OpenAI API, the same on every status."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


class BadRequest(Problem):
    """The request cannot be served as it is written."""


class Unauthenticated(Problem):
    """No key, or one we do not know."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(Problem):
    """A known key without the scope."""

    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class NotFound(Problem):
    """The thing named does not exist."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class Conflict(Problem):
    """The thing named is not in a state that allows this."""

    status = 409
    type = "conflict_error"
    code = "conflict"


class Unprocessable(Problem):
    """Understood, and at odds with what was asked before; sent again as it is, it is refused again."""

    status = 422
    code = "unprocessable"


class Overloaded(Problem):
    """The queue is full; `retry_after_s` says when to come back."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaExceeded(Problem):
    """The key's budget is used up: to ask again is of no use before it is renewed."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class Unavailable(Problem):
    """The part that would answer is not up, or not ready yet."""

    status = 503
    type = "service_unavailable"
    code = "unavailable"


class DeadlineExceeded(Problem):
    """The client said how long it would wait, and that was over before the answer was there."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class UpstreamFailed(Problem):
    """A server behind this one answered in a way it should not have."""

    status = 502
    type = "upstream_error"
    code = "upstream_failed"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a reply asks its client to wait; None: it does not say."""
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / per_second
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
