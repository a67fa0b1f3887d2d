"""One way to log for every service, as text or as JSON, and nothing secret in either."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from vcllm.web.logs import NAMED, PLAIN, WITH_REQUEST, LogFormat, set_up_logs, withhold
from vcllm.web.tracing import arrive, depart, request_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FIELDS = ["time", "level", "service", "logger", "message", "request_id", "trace_id", "exception"]


class Lines:
    """What the root logger writes from now on."""

    def __init__(self, format_: LogFormat = "json", **options: Any) -> None:
        self._stream = io.StringIO()
        set_up_logs("actor", format_, "info", stream=self._stream, **options)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def json(self) -> dict[str, Any]:
        [line] = self.text.splitlines()
        return dict(json.loads(line))


@pytest.fixture
def lines() -> Iterator[Callable[..., Lines]]:
    """Sets the logs up; they are as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Lines
    root.handlers[:] = handlers
    root.setLevel(level)


def in_a_request(log: Callable[[], None]) -> None:
    place, id_ = arrive(f"00-{TRACE}-00f067aa0ba902b7-01"), request_id.set("req-1")
    log()
    request_id.reset(id_)
    depart(place)


def test_a_line_says_when_who_and_for_which_request(lines: Callable[..., Lines]):
    """Always the same fields, in the same order."""
    written = lines()
    in_a_request(lambda: logging.getLogger("vcllm.test").warning("Replica %s is left alone.", "a1"))

    told = written.json
    assert list(told) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "level": "WARNING",
        "service": "actor",
        "logger": "vcllm.test",
        "message": "Replica a1 is left alone.",
        "request_id": "req-1",
        "trace_id": TRACE,
        "exception": None,
    }


def test_outside_of_requests_there_is_no_id(lines: Callable[..., Lines]):
    """Null, not a text that stands for nothing."""
    written = lines()
    logging.getLogger("vcllm.test").info("Up.")

    assert (written.json["request_id"], written.json["trace_id"]) == (None, None)


def test_what_is_attached_to_a_record_is_not_written(lines: Callable[..., Lines]):
    """Fields are allowed by name; another one may be anything."""
    written = lines()
    logging.getLogger("vcllm.test").info("Asked.", extra={"prompt": "canary-prompt", "authorization": "canary-key"})

    assert list(written.json) == FIELDS
    assert "canary" not in written.text


def test_an_exception_is_one_field_of_the_line(lines: Callable[..., Lines]):
    """A traceback over many lines would be as many records to whoever collects them."""
    written = lines()
    try:
        raise RuntimeError("on the way")
    except RuntimeError:
        logging.getLogger("vcllm.test").exception("It failed.")

    assert written.json["message"] == "It failed."
    assert written.json["exception"].startswith("Traceback") and "on the way" in written.json["exception"]


@pytest.mark.parametrize("format_", ["text", "json"])
def test_what_pydantic_quotes_is_taken_out_of_a_traceback(format_: LogFormat, lines: Callable[..., Lines]):
    """The input of a model is a conversation."""

    class Body(BaseModel):
        number: int

    written, prompt = lines(format_), "-".join(("canary", "prompt"))  # the traceback quotes this file, too
    try:
        Body.model_validate({"number": prompt})
    except ValidationError:
        logging.getLogger("vcllm.test").exception("It failed.")

    assert "ValidationError" in written.text and "input_value=***" in written.text
    assert "canary-prompt" not in written.text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Authorization: Bearer abc.def-1, next", "Authorization: Bearer ***, next"),
        ("{'authorization': 'Basic YTpi'}", "{'authorization': 'Basic ***'}"),
        ("the key vck_1a2b_s3cr3t-x is unknown", "the key vck_*** is unknown"),
        ("redis://:s3cr3t@redis:6379/0 is away", "redis://***@redis:6379/0 is away"),
        ("https://user:s3cr3t@host/path", "https://***@host/path"),
        ("http://actor:8201/v1 says user@example.org", "http://actor:8201/v1 says user@example.org"),
    ],
)
def test_credentials_are_taken_out_of_a_text(text: str, written: str):
    """Wherever a library has put them."""
    assert withhold(text) == written


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (NAMED, r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO vcllm\.test: Up\."),
        (PLAIN, r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO Up\."),
        (WITH_REQUEST, r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO vcllm\.test \[req-1\] Up\."),
    ],
)
def test_text_lines_look_as_they_always_did(text: str, pattern: str, lines: Callable[..., Lines]):
    """People and their scripts read them."""
    written = lines("text", text=text)
    in_a_request(lambda: logging.getLogger("vcllm.test").info("Up."))

    assert re.fullmatch(pattern, written.text.rstrip("\n"))


def test_calls_of_clients_are_not_told(lines: Callable[..., Lines]):
    """The client's library tells every one of them."""
    written = lines("text")
    logging.getLogger("httpx").info("HTTP Request: POST http://actor")

    assert written.text == ""


def test_a_celery_worker_logs_as_the_others_do():
    """Its own lines, too; what it would have set up is left alone."""
    code = (
        "import logging; from celery.app.log import Logging; from services.trainer.app import app;"
        "app.log.setup(loglevel='INFO'); logging.getLogger('celery.worker').info('ready.');"
        "logging.getLogger('services.trainer').info('taken')"
    )
    told = {"PATH": "/usr/bin:/bin", "VCLLM_LOG_FORMAT": "json"}

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=told)

    written = [json.loads(line) for line in said.stderr.splitlines()]
    assert [(one["service"], one["logger"], one["message"]) for one in written] == [
        ("trainer", "celery.worker", "ready."),
        ("trainer", "services.trainer", "taken"),
    ]
