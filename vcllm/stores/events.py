"""What happened to a job, in order: one Redis stream per job, readable from any point."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from redis import Redis

from vcllm.contracts.jobs import Event
from vcllm.contracts.problems import BadRequest
from vcllm.stores.connect import events_key

KEPT_EVENTS = 20_000
"""Older events of a very long job are dropped; its record and manifests stay."""


class EventLog:
    """Append and read; ids are Redis stream ids and serve as SSE event ids."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    def append(self, job_id: str, type_: str, **data: Any) -> str:
        fields = {"type": type_, "time": repr(time.time()), "data": json.dumps(data, ensure_ascii=False)}
        return str(self.redis.xadd(events_key(job_id), fields, maxlen=KEPT_EVENTS, approximate=True))

    def read(self, job_id: str, after: str = "0", *, block_s: float | None = None, limit: int = 500) -> list[Event]:
        """Events after the id `after`, oldest first; with `block_s`, wait that long for the first."""
        if not re.fullmatch(r"\d+(-\d+)?", after):
            raise BadRequest(f"'{after}' is not an event id. Use the `id` of an event, or leave it out.")
        block_ms = None if block_s is None else max(1, int(block_s * 1000))
        reply = self.redis.xread({events_key(job_id): after}, count=limit, block=block_ms) or []
        rows = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply]
        return [_event(*row) for entries in rows for row in _flat(entries)]


def _flat(entries: list[Any]) -> list[tuple[str, dict[str, str]]]:
    """RESP3 wraps the entries of a stream once more than RESP2."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _event(event_id: str, fields: dict[str, str]) -> Event:
    return Event(id=event_id, type=fields["type"], time=float(fields["time"]), data=json.loads(fields["data"]))
