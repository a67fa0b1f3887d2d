"""What happened to a job, in order: one Redis stream per job, readable from any point.

A stream holds the newest `KEPT_EVENTS` or somewhat more. What is dropped is dropped with a note of where it ended, so
that a reader who comes from before that point is told of the gap, and one who does not is not.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis

from vcllm.contracts.jobs import Event, Gap
from vcllm.contracts.problems import BadRequest
from vcllm.stores.connect import events_dropped_key, events_key

KEPT_EVENTS = 20_000
"""Older events of a very long job are dropped; its record and manifests stay."""
DROPPED_AT_ONCE = 500
"""So many more than `KEPT_EVENTS` may be there before any goes: looking for the place costs as much as dropping."""
_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")


@dataclass(frozen=True)
class Replay:
    """Events after a point, complete and in order, but for what the gap says."""

    events: list[Event]
    gap: Gap | None = None
    """None: nothing is missing between the point and the first event."""


class EventLog:
    """Append and read; ids are Redis stream ids and serve as SSE event ids."""

    def __init__(self, redis: Redis, kept: int = KEPT_EVENTS, dropped_at_once: int = DROPPED_AT_ONCE) -> None:
        self.redis: Any = redis
        self.kept, self.dropped_at_once = kept, dropped_at_once

    def append(self, job_id: str, type_: str, **data: Any) -> str:
        fields = (type_, repr(time.time()), json.dumps(data, ensure_ascii=False))
        keys = (events_key(job_id), events_dropped_key(job_id))
        return str(self.redis.eval(_APPEND, 2, *keys, *fields, self.kept, self.dropped_at_once))

    def replay(self, job_id: str, after: str = "0", *, limit: int = 500) -> Replay:
        """Events after the id `after`, oldest first, and whether some after it are gone; both at one moment."""
        point = _place(after)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.xread({events_key(job_id): after}, count=limit)
            pipe.hgetall(events_dropped_key(job_id))
            reply, dropped = pipe.execute()
        gap = Gap(until=dropped["until"], num_gone=int(dropped["count"])) if dropped else None
        return Replay(_events(reply), gap if gap is not None and point < _place(gap.until) else None)

    def read(self, job_id: str, after: str = "0", *, block_s: float | None = None, limit: int = 500) -> list[Event]:
        """Events after the id `after`, oldest first; with `block_s`, wait that long for the first."""
        _place(after)
        block_ms = None if block_s is None else max(1, int(block_s * 1000))
        return _events(self.redis.xread({events_key(job_id): after}, count=limit, block=block_ms))

    def newest(self, job_id: str, before: str | None = None, *, limit: int = 20) -> list[Event]:
        """Newest first; before: only those older than this id."""
        if before is not None and _place(before) == (0, 0):
            return []  # Redis refuses to look below its lowest id
        top = "+" if before is None else f"({before}"
        return [_event(*row) for row in self.redis.xrevrange(events_key(job_id), top, "-", count=limit)]


def _place(event_id: str) -> tuple[int, int]:
    """What ids are ordered by; BadRequest for what is none."""
    if not _ID.fullmatch(event_id) or any(int(part) >= 2**64 for part in event_id.split("-")):
        raise BadRequest(f"'{event_id[:60]}' is not an event id. Use the `id` of an event, or leave it out.")
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _events(reply: Any) -> list[Event]:
    """RESP3 gives streams by name and wraps the entries of each once more than RESP2."""
    rows = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
    return [_event(*row) for entries in rows for row in _flat(entries)]


def _flat(entries: list[Any]) -> list[tuple[str, dict[str, str]]]:
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _event(event_id: str, fields: dict[str, str]) -> Event:
    return Event(id=event_id, type=fields["type"], time=float(fields["time"]), data=json.loads(fields["data"]))


_APPEND = """
local id = redis.call('XADD', KEYS[1], '*', 'type', ARGV[1], 'time', ARGV[2], 'data', ARGV[3])
local over = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[4])
if over >= tonumber(ARGV[5]) then
  local gone = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', over)
  redis.call('HSET', KEYS[2], 'until', gone[#gone][1])
  redis.call('HINCRBY', KEYS[2], 'count', over)
  redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[4])
end
return id
"""
