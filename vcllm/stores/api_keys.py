"""API keys at rest: a keyed hash and a record, never the key.

A key reads `vck_<id>_<secret>`. The whole key is hashed with HMAC-SHA256 under a pepper that lives outside
Redis, so neither the database nor a part of a key is enough to find one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from pydantic import SecretStr
from redis import Redis

from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import NotFound, Unauthenticated
from vcllm.stores.connect import KEYS


class KeyStore:
    """Make, find, list and revoke keys."""

    def __init__(self, redis: Redis, pepper: SecretStr) -> None:
        self.redis = redis
        self._pepper = pepper

    def create(self, name: str, scopes: list[Scope], ttl_s: float | None = None) -> tuple[str, KeyRecord]:
        """The key, shown this once, and its record."""
        key_id = secrets.token_hex(4)
        key = f"vck_{key_id}_{secrets.token_urlsafe(32)}"
        now = time.time()
        record = KeyRecord(
            id=key_id,
            name=name,
            scopes=scopes,
            created=now,
            expires=None if ttl_s is None else now + ttl_s,
            hint=key[:12],
        )
        self.redis.hset(KEYS, self._digest(key), record.model_dump_json())
        return key, record

    def find(self, key: str) -> KeyRecord:
        """The record of a key; Unauthenticated when it is unknown or expired."""
        raw = self.redis.hget(KEYS, self._digest(key))
        record = None if raw is None else KeyRecord.model_validate_json(raw)
        if record is None:
            raise Unauthenticated("This API key is not known here. Make one with `vcllm keys create`.")
        if record.expires is not None and record.expires < time.time():
            raise Unauthenticated("This API key has expired. Make a new one with `vcllm keys create`.")
        return record

    def all(self) -> list[KeyRecord]:
        records = [KeyRecord.model_validate_json(raw) for raw in self.redis.hvals(KEYS)]
        return sorted(records, key=lambda record: record.created)

    def revoke(self, key_id: str) -> None:
        for stored, raw in self.redis.hgetall(KEYS).items():
            if KeyRecord.model_validate_json(raw).id == key_id:
                self.redis.hdel(KEYS, stored)
                return
        raise NotFound(f"There is no key '{key_id}'. `vcllm keys list` shows those that exist.")

    def _digest(self, key: str) -> str:
        return hmac.new(self._pepper.get_secret_value().encode(), key.encode(), hashlib.sha256).hexdigest()
