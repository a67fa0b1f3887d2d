"""Traces go on through requests and jobs with or without anybody who records them."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vcllm.contracts.traces import TraceParent, new_traceparent, trace_of
from vcllm.web.otel import Recorder
from vcllm.web.tracing import (
    TracingSettings,
    arrive,
    depart,
    note,
    open_recorder,
    outgoing_headers,
    request_id,
    span,
    trace_id,
    traceparent,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"


class Recorded:
    """A recorder, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.recorder = Recorder("test", SimpleSpanProcessor(self._exporter))

    def __getitem__(self, name: str) -> ReadableSpan:
        [found] = [one for one in self._exporter.get_finished_spans() if one.name == name]
        return found


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def trace_in(one: ReadableSpan) -> str:
    return f"{one.context.trace_id:032x}"


def parent_of(one: ReadableSpan) -> str | None:
    return None if one.parent is None else f"{one.parent.span_id:016x}"


def span_in(one: ReadableSpan) -> str:
    return f"{one.context.span_id:016x}"


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (HEADER, TraceParent(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-00", TraceParent(TRACE, SPAN, sampled=False)),
        (f"00-{TRACE}-{SPAN}-03", TraceParent(TRACE, SPAN)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", TraceParent(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (HEADER.upper(), None),
        (HEADER + "\n", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(header: str, read: TraceParent | None):
    """What is not one is not repaired: a new trace begins."""
    assert TraceParent.parse(header) == read


@given(st.text(max_size=80))
def test_whatever_is_sent_a_request_has_a_proper_trace(header: str):
    """It is chosen by strangers."""
    token = arrive(header)
    try:
        assert TraceParent.parse(traceparent()) is not None
    finally:
        depart(token)


def test_what_is_made_is_what_is_read():
    """Also by us."""
    made = new_traceparent()

    assert str(TraceParent.parse(made)) == made
    assert trace_of(made) == TraceParent.parse(made).trace


def test_nothing_is_told_outside_of_requests_and_jobs():
    """A probe belongs to nobody."""
    assert outgoing_headers() == {}
    assert trace_id() is None


def test_a_request_passes_on_what_it_was_told():
    """Nobody records here, so the next one belongs under whoever asked us."""
    token, id_ = arrive(HEADER), request_id.set("req-1")

    told = outgoing_headers()
    request_id.reset(id_)
    depart(token)

    assert told == {"x-request-id": "req-1", "traceparent": HEADER}


def test_a_jobs_calls_have_its_trace_for_a_request_id():
    """By which the logs of the servers can be searched for a pair's trace."""
    with span("job", above=HEADER):
        told = outgoing_headers()

    assert told == {"x-request-id": TRACE, "traceparent": HEADER}


def test_spans_lie_within_one_another(recorded: Recorded):
    """The first is the first of its trace; what is asked within the second belongs under it."""
    token = arrive("")
    begun = trace_id()
    with span("outer", {"vc.round": 3, "absent": None}, recorder=recorded.recorder), span("inner"):
        note({"vc.pairs": 7})
        told = outgoing_headers()["traceparent"]
    depart(token)

    outer, inner = recorded["outer"], recorded["inner"]
    assert trace_in(outer) == trace_in(inner) == begun
    assert (parent_of(outer), parent_of(inner)) == (None, span_in(outer))
    assert told == f"00-{begun}-{span_in(inner)}-01"
    assert (dict(outer.attributes), dict(inner.attributes)) == ({"vc.round": 3}, {"vc.pairs": 7})


def test_work_of_another_trace_is_linked_to_what_led_to_it(recorded: Recorded):
    """A job that goes on with a round which another job began."""
    with span("job", recorder=recorded.recorder), span("round", above=HEADER), span("play"):
        assert trace_id() == TRACE

    job, found = recorded["job"], recorded["round"]
    assert (trace_in(found), parent_of(found)) == (TRACE, SPAN)
    assert [link.context.span_id for link in found.links] == [job.context.span_id]
    assert parent_of(recorded["play"]) == span_in(found)


def test_work_of_the_trace_we_stand_in_belongs_where_we_stand(recorded: Recorded):
    """After a crash the span that began it may never have been sent."""
    with span("job", above=HEADER, recorder=recorded.recorder), span("round", above=HEADER):
        pass

    assert parent_of(recorded["round"]) == span_in(recorded["job"])
    assert not recorded["round"].links


def test_an_error_is_told_without_its_text(recorded: Recorded):
    """It may quote anything."""
    with pytest.raises(ValueError), span("work", recorder=recorded.recorder):
        raise ValueError("canary-prompt")

    failed = recorded["work"]
    assert failed.attributes["error.type"] == "ValueError"
    assert not failed.status.is_ok
    assert "canary-prompt" not in failed.to_json()


def test_a_trace_that_is_not_to_be_recorded_is_not(recorded: Recorded):
    """Whoever asks has drawn lots already."""
    with span("work", above=f"00-{TRACE}-{SPAN}-00", recorder=recorded.recorder):
        told = outgoing_headers()["traceparent"]

    assert told.startswith(f"00-{TRACE}-") and told.endswith("-00")
    with pytest.raises(ValueError):
        recorded["work"]


def test_a_thread_takes_its_place_along(recorded: Recorded):
    """As the clients' threads do."""
    with ThreadPoolExecutor(1) as pool, span("work", above=HEADER, recorder=recorded.recorder):
        told = pool.submit(copy_context().run, outgoing_headers).result()

    assert told["traceparent"] == f"00-{TRACE}-{span_in(recorded['work'])}-01"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_traces_are_recorded_where_a_collector_is_named(
    variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
):
    """By OpenTelemetry's own variables."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert TracingSettings().wanted is wanted


def test_a_missing_library_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A collector is named, and the extra is not installed."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "vcllm.web.otel", None)

    with caplog.at_level(logging.WARNING):
        assert open_recorder("gateway") is None
    assert "Install the extra `otel`" in caplog.text


def test_nothing_of_the_sdk_is_imported_where_nothing_is_recorded():
    """A gateway and a worker without a collector pay nothing for it. (redis-py takes the SDK's metrics where it is.)"""
    code = (
        "import sys, gateway.app, services.trainer.app; from vcllm.web.tracing import open_recorder;"
        "assert open_recorder('x') is None; print([m for m in ('vcllm.web.otel', 'opentelemetry.sdk.trace',"
        " 'opentelemetry.exporter') if m in sys.modules])"
    )
    clean = {"PATH": "/usr/bin:/bin"}

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=clean)

    assert (said.stdout.strip(), said.returncode) == ("[]", 0), said.stderr
