"""Spans by way of OpenTelemetry. Imported only where traces are recorded; everybody else knows `tracing`."""

from __future__ import annotations

import os
import socket
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from vcllm.contracts.traces import TraceParent
from vcllm.web.tracing import Attributes, Kind

KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}


def exporting(service: str) -> Recorder:
    """To the collector that the `OTEL_*` variables name, in the background."""
    return Recorder(service, BatchSpanProcessor(OTLPSpanExporter()))


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the work that is being recorded."""

    parent: TraceParent
    """For what is done within."""
    span: api.Span

    def note(self, attributes: Attributes) -> None:
        self.span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def fail(self, error: BaseException) -> None:
        """Only what kind of error it was: its text may quote anything."""
        self.span.set_attribute("error.type", type(error).__qualname__)
        self.span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self.span.end()


class Recorder:
    """Records the spans of one process. Thread-safe."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        self._ids = _GivenIds()
        self._provider = TracerProvider(resource=_resource(service), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vcllm")

    def start(self, name: str, kind: Kind, parent: TraceParent | None, trace: str, cause: TraceParent | None) -> Span:
        """parent: None: it is the first of `trace`. cause: what led to it, in another trace."""
        self._ids.trace.set(int(trace, 16))
        span = self._tracer.start_span(
            name,
            context=Context() if parent is None else api.set_span_in_context(NonRecordingSpan(_context(parent))),
            kind=KINDS[kind],
            links=[] if cause is None else [Link(_context(cause))],
        )
        made = span.get_span_context()
        sampled = bool(made.trace_flags & TraceFlags.SAMPLED)
        return Span(TraceParent(trace, f"{made.span_id:016x}", sampled), span)

    def flush(self) -> None:
        """Send what has ended so far; gives up after a few seconds, for nobody's work is to wait for a collector."""
        self._provider.force_flush(5000)

    def close(self) -> None:
        self._provider.shutdown()


class _GivenIds(RandomIdGenerator):
    """The id of a new trace was given out before its first span, in a reply's log or a job's record."""

    def __init__(self) -> None:
        self.trace: ContextVar[int] = ContextVar("given_trace")

    def generate_trace_id(self) -> int:
        return self.trace.get()


def _context(place: TraceParent) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if place.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(place.trace, 16), int(place.span, 16), is_remote=True, trace_flags=flags)


def _resource(service: str) -> Resource:
    """`OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go before."""
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": f"vc-llm-{service}"}
    return Resource.create({**named, "service.instance.id": f"{socket.gethostname()}:{os.getpid()}"})
