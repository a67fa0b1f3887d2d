"""How a service logs: one line of text for people, or one JSON object a line for machines.

Of a record only the fields below are written, whatever else its caller attached. Credentials are taken out of all
texts, and what an exception of pydantic's quotes of its input. Does not know which levels or loggers a service wants.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Literal, TextIO

from vcllm.web.tracing import NO_REQUEST, request_id, trace_id

LogFormat = Literal["text", "json"]

PLAIN = "%(asctime)s %(levelname)s %(message)s"
NAMED = "%(asctime)s %(levelname)s %(name)s: %(message)s"
WITH_REQUEST = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"
CHATTY = ("httpx", "httpcore")
"""They tell every call."""

_WITHHELD = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+"), r"\1 ***"),
    (re.compile(r"\bvck_[A-Za-z0-9_.-]+"), "vck_***"),
    (re.compile(r"(\w+://)[^\s/@]*:[^\s/@]*@"), r"\1***@"),
    (re.compile(r"(\binput_value=).*?(, input_type=)", re.DOTALL), r"\1***\2"),
)
"""Credentials and API keys; passwords in addresses; what a message of pydantic's quotes."""


def set_up_logs(
    service: str, format_: LogFormat, level: str | int, *, text: str = NAMED, stream: TextIO | None = None
) -> None:
    """Make the root logger write in this way, in place of any way before; all other loggers lead to it.

    service: `gateway`, `actor`, `reaper`, ... text: how a line looks that is not JSON. stream: None: standard error.
    ValueError for a level that does not exist.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(JsonLines(service) if format_ == "json" else TextLines(text))
    logging.basicConfig(level=level.upper() if isinstance(level, str) else level, handlers=[handler], force=True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


class RequestIdFilter(logging.Filter):
    """Gives every log record the field `request_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class TextLines(logging.Formatter):
    """A line for people, and a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        return withhold(super().format(record))


class JsonLines(logging.Formatter):
    """One object a line, always with the same fields; null: there is none."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        id_ = request_id.get()
        exception = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None
        return json.dumps(
            {
                "time": _utc(record.created),
                "level": record.levelname,
                "service": self.service,
                "logger": record.name,
                "message": withhold(record.getMessage()),
                "request_id": None if id_ == NO_REQUEST else id_,
                "trace_id": trace_id(),
                "exception": None if exception is None else withhold(exception),
            },
            ensure_ascii=False,
        )


def withhold(text: str) -> str:
    """The text without what nobody may read in a log."""
    for pattern, instead in _WITHHELD:
        text = pattern.sub(instead, text)
    return text


def _utc(seconds: float) -> str:
    """RFC 3339 with milliseconds."""
    whole, millis = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{millis:03d}Z"
