"""Which version of a role is `current`, `candidate` or `previous`: one Redis hash per role, moved at once."""

from __future__ import annotations

from typing import Any

from redis import Redis

from vcllm.contracts.manifests import Alias, Role
from vcllm.contracts.problems import Conflict
from vcllm.stores.connect import aliases_key


class AliasStore:
    """Pointers into the model store."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    def get(self, role: Role | str, alias: Alias = "current") -> str | None:
        value = self.redis.hget(aliases_key(role), alias)
        return None if value is None else str(value)

    def all(self, role: Role | str) -> dict[str, str]:
        return dict(self.redis.hgetall(aliases_key(role)))

    def set(self, role: Role, alias: Alias, version: str) -> None:
        self.redis.hset(aliases_key(role), alias, version)

    def promote(self, role: Role, version: str) -> None:
        """`current` becomes `previous`, `version` becomes `current`; a no-op when it already is."""
        self.redis.eval(_PROMOTE, 1, aliases_key(role), version)

    def roll_back(self, role: Role) -> str:
        """Swap `current` and `previous`; the version that is current now."""
        version = self.redis.eval(_ROLL_BACK, 1, aliases_key(role))
        if version is None:
            raise Conflict(f"There is no previous {role} version to go back to.", code="no_previous_version")
        return str(version)


_PROMOTE = """
local now = redis.call('HGET', KEYS[1], 'current')
if now == ARGV[1] then return 0 end
if now then redis.call('HSET', KEYS[1], 'previous', now) end
redis.call('HSET', KEYS[1], 'current', ARGV[1])
return 1
"""
_ROLL_BACK = """
local now = redis.call('HGET', KEYS[1], 'current')
local before = redis.call('HGET', KEYS[1], 'previous')
if not now or not before then return false end
redis.call('HSET', KEYS[1], 'previous', now, 'current', before)
return before
"""
