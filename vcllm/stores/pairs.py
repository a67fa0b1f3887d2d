"""Critic-approved pairs on their way to training: one Redis stream and one ledger per lineage.

Delivery is at least once; the effect is exactly once, because a pair is acknowledged only after the manifest
that lists it is committed, and the ledger remembers which version used it. Nothing is trimmed unread: above
the high-water mark new pairs are refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ResponseError

from vcllm.contracts.pairs import Pair
from vcllm.contracts.problems import Overloaded
from vcllm.stores.connect import pairs_dead_key, pairs_key, pairs_seen_key, pairs_used_key

GROUP = "trainer"
MAX_DELIVERIES = 5
"""A pair delivered more often than this goes to the dead-letter stream."""
HIGH_WATER = 100_000


class DoubleUse(Exception):
    """A version lists a pair that another version of the lineage has already used."""


class PairStream:
    """The approved pairs of one lineage."""

    def __init__(self, redis: Redis, lineage: str, high_water: int = HIGH_WATER) -> None:
        self.redis: Any = redis
        self.lineage = lineage
        self.high_water = high_water
        self.stream = pairs_key(lineage)
        self._open_group()

    def add(self, pair: Pair) -> bool:
        """Queue a pair; False when this very pair was queued before."""
        if self.waiting() >= self.high_water:
            raise Overloaded(
                f"{self.high_water} pairs of lineage '{self.lineage}' wait. Let the trainer catch up.",
                retry_after_s=30,
            )
        seen = pairs_seen_key(self.lineage)
        return bool(self.redis.eval(_ADD, 2, seen, self.stream, pair.id, pair.model_dump_json()))

    def claim(self, consumer: str, limit: int = 100_000) -> dict[str, Pair]:
        """Every pair not yet acknowledged, by stream entry id: those a lost consumer held, and new ones.

        One trainer works on a lineage at a time (its job's lease sees to that), so whatever another consumer
        still holds was left behind.
        """
        self._drop_poisoned()
        entries = self._reclaim(consumer, limit)[:limit]
        room = limit - len(entries)
        reply = self.redis.xreadgroup(GROUP, consumer, {self.stream: ">"}, count=room) if room else None
        reply = reply or []
        groups = reply.values() if isinstance(reply, dict) else [rows for _, rows in reply]
        for rows in groups:
            flat = rows[0] if rows and isinstance(rows[0], list) else rows
            entries.extend(flat)
        pairs: dict[str, Pair] = {}
        for entry_id, fields in sorted(entries, key=lambda row: _order(row[0])):
            try:
                pairs[entry_id] = Pair.model_validate_json(fields["pair"])
            except (ValidationError, KeyError) as error:
                self._bury(entry_id, fields, f"unreadable: {error}")
        return pairs

    def acknowledge(self, entries: dict[str, Pair] | dict[str, str], version: str) -> None:
        """Enter into the ledger that `version` used these pairs, and take them off the stream: all or none.

        May be repeated. DoubleUse, and no change, when another version has used one of them.
        entries: stream entry id to pair (or pair id). Called only once the version's manifest is committed.
        """
        rows = [
            text for entry, pair in entries.items() for text in (entry, pair.id if isinstance(pair, Pair) else pair)
        ]
        keys = (pairs_used_key(self.lineage), self.stream)
        taken = self.redis.eval(_ACKNOWLEDGE, 2, *keys, GROUP, version, *rows)
        if taken:
            raise DoubleUse(f"pair {taken[0]} was already used by {taken[1]}")

    def used_by(self) -> dict[str, str]:
        """The ledger: pair id to the version that first used it."""
        return dict(self.redis.hgetall(pairs_used_key(self.lineage)))

    def used(self) -> int:
        return int(self.redis.hlen(pairs_used_key(self.lineage)))

    def entries(self) -> dict[str, Pair]:
        """Every readable pair ever approved in this lineage, by entry id, oldest first."""
        found: dict[str, Pair] = {}
        for entry, fields in self.redis.xrange(self.stream):
            with suppress(ValidationError, KeyError):
                found[entry] = Pair.model_validate_json(fields["pair"])
        return found

    def waiting(self) -> int:
        """Approved and not yet used by a committed version."""
        return int(self.redis.xlen(self.stream)) - self.used() - self.dead()

    def dead(self) -> int:
        return int(self.redis.xlen(pairs_dead_key(self.lineage)))

    def _open_group(self) -> None:
        try:
            self.redis.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _reclaim(self, consumer: str, limit: int) -> list[Any]:
        entries: list[Any] = []
        cursor = "0-0"
        while len(entries) < limit:
            cursor, rows, *_ = self.redis.xautoclaim(
                self.stream, GROUP, consumer, min_idle_time=0, start_id=cursor, count=1000
            )
            entries.extend(row for row in rows if row and row[1])
            if cursor == "0-0":
                break
        return entries

    def _drop_poisoned(self) -> None:
        start = "-"
        while rows := self.redis.xpending_range(self.stream, GROUP, start, "+", 1000):
            start = f"({rows[-1]['message_id']}"
            for row in rows:
                if row["times_delivered"] > MAX_DELIVERIES:
                    for entry, fields in self.redis.xrange(self.stream, row["message_id"], row["message_id"]):
                        self._bury(entry, fields, f"delivered {row['times_delivered']} times without a result")

    def _bury(self, entry: str, fields: dict[str, str], reason: str) -> None:
        with self.redis.pipeline() as pipe:
            pipe.xadd(pairs_dead_key(self.lineage), {"entry": entry, "reason": reason, "fields": json.dumps(fields)})
            pipe.xack(self.stream, GROUP, entry)
            pipe.execute()


def _order(entry_id: str) -> tuple[int, int]:
    millis, _, sequence = entry_id.partition("-")
    return int(millis), int(sequence or 0)


_ACKNOWLEDGE = """
for i = 3, #ARGV, 2 do
  local by = redis.call('HGET', KEYS[1], ARGV[i + 1])
  if by and by ~= ARGV[2] then return {ARGV[i + 1], by} end
end
for i = 3, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], ARGV[i + 1], ARGV[2])
  redis.call('XACK', KEYS[2], ARGV[1], ARGV[i])
end
return false
"""
_ADD = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'pair', ARGV[2])
return 1
"""
