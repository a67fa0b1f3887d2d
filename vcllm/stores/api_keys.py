"""API keys at rest: a keyed hash and a record, never the key.

A key reads `vck_<id>_<secret>`. The whole key is hashed with HMAC-SHA256 under a pepper that lives outside
Redis, so neither the database nor a part of a key is enough to find one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import SecretStr
from redis import Redis

from vcllm.contracts.guard import GuardMode
from vcllm.contracts.keys import Budget, KeyChange, KeyLimits, KeyRecord, Scope
from vcllm.contracts.problems import BadRequest, Conflict, NotFound, Unauthenticated
from vcllm.stores.connect import KEYS, KEYS_USED

T = TypeVar("T")


class KeyStore:
    """Make, find, list, change, rotate and revoke keys."""

    def __init__(self, redis: Redis, pepper: SecretStr) -> None:
        self.redis: Any = redis
        self._pepper = pepper

    def create(
        self,
        name: str,
        scopes: list[Scope],
        ttl_s: float | None = None,
        *,
        limits: KeyLimits | None = None,
        budget: Budget | None = None,
        guard: GuardMode | None = None,
    ) -> tuple[str, KeyRecord]:
        """The key, shown this once, and its record. ttl_s: None: it does not expire."""
        key, record = _make(
            name=name, scopes=scopes, ttl_s=ttl_s, limits=limits or KeyLimits(), budget=budget, guard=guard
        )
        self.redis.hset(KEYS, self._digest(key), record.model_dump_json())
        return key, record

    def find(self, key: str) -> KeyRecord:
        """The record of a key; Unauthenticated when it is unknown or expired."""
        raw = self.redis.hget(KEYS, self._digest(key))
        record = None if raw is None else KeyRecord.model_validate_json(raw)
        if record is None:
            raise Unauthenticated("This API key is not known here. Make one with `vcllm keys create`.")
        return refuse_expired(record)

    def get(self, key_id: str) -> KeyRecord:
        """By its id; NotFound when there is none."""
        for record in self.all():
            if record.id == key_id:
                return record
        raise _missing(key_id)

    def all(self) -> list[KeyRecord]:
        """Oldest first; those that have expired are among them."""
        records = [KeyRecord.model_validate_json(raw) for raw in self.redis.hvals(KEYS)]
        return sorted(records, key=lambda record: record.created)

    def last_used(self) -> dict[str, float]:
        """Key id to the Unix second it was last seen by a gateway, which is told once a second.

        So a key may be told of after it was revoked: it is left out, and dropped here.
        """
        used = self.redis.hgetall(KEYS_USED)
        revoked = used.keys() - {record.id for record in self.all()}
        if revoked:
            self.redis.hdel(KEYS_USED, *revoked)
        return {key_id: float(when) for key_id, when in used.items() if key_id not in revoked}

    def rotate(self, key_id: str, overlap_s: float, ttl_s: float | None = None) -> tuple[str, KeyRecord]:
        """A successor, and its record; the old key lives on for `overlap_s`, or until it would have expired anyway.

        The successor may do the same and counts against the same limits and budget.
        ttl_s: None: it lives as long as the old one was made for.
        NotFound when there is no such key, Conflict when it has expired or was rotated before.
        """

        def succeed(stored: str, old: KeyRecord, write: Any) -> tuple[str, KeyRecord]:
            now = time.time()
            if old.replaced_by is not None:
                raise Conflict(f"Key '{key_id}' was rotated before: rotate '{old.replaced_by}', which took its place.")
            if _is_over(old, now):
                raise Conflict(f"Key '{key_id}' has expired. Make a new one with `vcllm keys create`.")
            made_for_s = None if old.expires is None else old.expires - old.created
            key, record = _make(
                name=old.name,
                scopes=old.scopes,
                ttl_s=ttl_s or made_for_s,
                limits=old.limits,
                budget=old.budget,
                guard=old.guard,
                account=old.counted_as,
            )
            ends = min(now + overlap_s, old.expires or float("inf"))
            ending = old.model_copy(update={"expires": ends, "replaced_by": record.id})
            write.hset(KEYS, stored, ending.model_dump_json())
            write.hset(KEYS, self._digest(key), record.model_dump_json())
            return key, record

        return self._change(key_id, succeed)

    def change(self, key_id: str, change: KeyChange) -> list[KeyRecord]:
        """The changed record, then those of the same account: keys that came from each other share limits and budget.

        NotFound when there is no such key, BadRequest when nothing is to be changed.
        """
        if change.is_empty:
            raise BadRequest("Say what is to be changed: limits, budget or guard.")

        def attempt(pipe: Any) -> list[KeyRecord]:
            stored = {digest: KeyRecord.model_validate_json(raw) for digest, raw in pipe.hgetall(KEYS).items()}
            account = next((record.counted_as for record in stored.values() if record.id == key_id), None)
            if account is None:
                raise _missing(key_id)
            changed = {
                digest: (change if record.id == key_id else change.share()).apply(record)
                for digest, record in stored.items()
                if record.counted_as == account
            }
            pipe.multi()
            pipe.hset(KEYS, mapping={digest: record.model_dump_json() for digest, record in changed.items()})
            return sorted(changed.values(), key=lambda record: record.id != key_id)

        records: list[KeyRecord] = self.redis.transaction(attempt, KEYS, value_from_callable=True)
        return records

    def revoke(self, key_id: str) -> None:
        """NotFound when there is no such key."""

        def remove(stored: str, _: KeyRecord, write: Any) -> None:
            write.hdel(KEYS, stored)
            write.hdel(KEYS_USED, key_id)

        self._change(key_id, remove)

    def _change(self, key_id: str, change: Callable[[str, KeyRecord, Any], T]) -> T:
        """Run `change(digest, record, pipeline)` on a key; again when somebody else changed keys meanwhile."""

        def attempt(pipe: Any) -> T:
            for stored, raw in pipe.hgetall(KEYS).items():
                record = KeyRecord.model_validate_json(raw)
                if record.id == key_id:
                    pipe.multi()
                    return change(stored, record, pipe)
            raise _missing(key_id)

        result: T = self.redis.transaction(attempt, KEYS, value_from_callable=True)
        return result

    def _digest(self, key: str) -> str:
        return hmac.new(self._pepper.get_secret_value().encode(), key.encode(), hashlib.sha256).hexdigest()


def refuse_expired(record: KeyRecord) -> KeyRecord:
    """The record; Unauthenticated from the second it expires."""
    if _is_over(record, time.time()):
        raise Unauthenticated("This API key has expired. Make a new one with `vcllm keys create`.")
    return record


def _is_over(record: KeyRecord, now: float) -> bool:
    return record.expires is not None and record.expires <= now


def _missing(key_id: str) -> NotFound:
    return NotFound(f"There is no key '{key_id}'. `vcllm keys list` shows those that exist.")


def _make(ttl_s: float | None, **fields: Any) -> tuple[str, KeyRecord]:
    key_id = secrets.token_hex(6)
    key = f"vck_{key_id}_{secrets.token_urlsafe(32)}"
    now = time.time()
    expires = None if ttl_s is None else now + ttl_s
    return key, KeyRecord(id=key_id, hint=key[:12], created=now, expires=expires, **fields)
