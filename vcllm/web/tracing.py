"""Where in a trace the work in hand stands: learned from who asked, told to who is asked, kept for what follows.

Every request and every job is in a trace, also where nobody records any: so the id in pairs, manifests and logs is
always there. Spans are recorded where a recorder was opened (`open_recorder`); nothing of OpenTelemetry is imported
before. What a span may say is decided by who opens it; texts of conversations are never among it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic_settings import BaseSettings, SettingsConfigDict

from vcllm.contracts.traces import TraceParent, new_traceparent

if TYPE_CHECKING:
    from vcllm.web.otel import Recorder, Span

log = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "consumer"]
Attributes = Mapping[str, str | int | float | bool | list[str] | None]
"""By their OpenTelemetry names; what is None is left out."""

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)
"""The id of the request being served, for logs and for calls made on its behalf."""


class Here(NamedTuple):
    """Where the work in hand stands."""

    parent: TraceParent
    """What is done next belongs under it."""
    begun: bool = False
    """The trace begins here: nobody has recorded `parent`."""
    span: Span | None = None
    recorder: Recorder | None = None


_here: ContextVar[Here | None] = ContextVar("trace", default=None)


def trace_id() -> str | None:
    """Of the work in hand; None outside of requests and jobs."""
    here = _here.get()
    return None if here is None else here.parent.trace


def traceparent() -> str:
    """What later work is to be put under; outside of requests and jobs, a trace of its own."""
    here = _here.get()
    return new_traceparent() if here is None else str(here.parent)


def outgoing_headers() -> dict[str, str]:
    """Of a call made on behalf of the work in hand; none outside of requests and jobs.

    A job's calls have the id of its trace for a request id.
    """
    here = _here.get()
    if here is None:
        return {}
    id_ = request_id.get()
    return {"x-request-id": here.parent.trace if id_ == NO_REQUEST else id_, "traceparent": str(here.parent)}


def arrive(header: str) -> Token[Here | None]:
    """Stand where a request's `traceparent` says, or in a new trace; the token is for `depart`."""
    parent = TraceParent.parse(header) if header else None
    return _here.set(Here(TraceParent.new(), begun=True) if parent is None else Here(parent))


def depart(token: Token[Here | None]) -> None:
    _here.reset(token)


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    above: str | None = None,
    recorder: Recorder | None = None,
) -> Iterator[Span | None]:
    """A part of the work in hand. Costs next to nothing, and gives None, where nobody records.

    above: the `traceparent` it belongs under, where that is in another trace than the one we stand in.
    recorder: None: the one of the part it is in.
    """
    was = _here.get()
    here = _under(was, above)
    recorder = recorder or (None if was is None else was.recorder)
    if recorder is None:
        token = _here.set(here)
        try:
            yield None
        finally:
            _here.reset(token)
        return
    cause = None if was is None or was.parent.trace == here.parent.trace else was.parent
    opened = recorder.start(name, kind, None if here.begun else here.parent, here.parent.trace, cause)
    token = _here.set(Here(opened.parent, span=opened, recorder=recorder))
    opened.note(attributes or {})
    try:
        yield opened
    except BaseException as error:
        opened.fail(error)
        raise
    finally:
        _here.reset(token)
        opened.end()


def note(attributes: Attributes) -> None:
    """Add to the span of the work in hand, if there is one."""
    here = _here.get()
    if here is not None and here.span is not None:
        here.span.note(attributes)


class TracingSettings(BaseSettings):
    """OpenTelemetry's own variables, as far as they say whether to record at all; the SDK reads the rest by itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", frozen=True, extra="ignore")

    exporter_otlp_endpoint: str = ""
    """A collector's address; empty: nothing is recorded."""
    exporter_otlp_traces_endpoint: str = ""
    sdk_disabled: str = ""

    @property
    def wanted(self) -> bool:
        named = self.exporter_otlp_endpoint or self.exporter_otlp_traces_endpoint
        return bool(named) and self.sdk_disabled.strip().lower() != "true"


def open_recorder(service: str) -> Recorder | None:
    """A recorder that sends what this process does to the collector; None where none is configured.

    To be closed by who opened it, and not to be opened before a fork.
    """
    if not TracingSettings().wanted:
        return None
    try:
        from vcllm.web.otel import exporting
    except ImportError as error:
        log.warning("Traces are not sent: %s is not installed. Install the extra `otel`.", error.name)
        return None
    return exporting(service)


def _under(was: Here | None, above: str | None) -> Here:
    parent = None if above is None else TraceParent.parse(above)
    if parent is None:
        return was or Here(TraceParent.new(), begun=True)
    return was if was is not None and was.parent.trace == parent.trace else Here(parent)
