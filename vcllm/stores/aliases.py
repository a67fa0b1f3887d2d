"""Which version of a role is `current`, `candidate` or `previous`: one Redis hash per role, moved at once.

Every move of `current` is noted in the same step: what it meant before, when, and who moved it.
"""

from __future__ import annotations

import json
import time
from typing import Any

from redis import Redis

from vcllm.contracts.aliases import AliasMove
from vcllm.contracts.manifests import Alias, Role
from vcllm.contracts.problems import Conflict
from vcllm.stores.connect import alias_history_key, aliases_key

TRAINER = "trainer"
"""Who moves an alias when no person does: the gate, or a pipeline that made another Critic or Attacker."""
KEPT_MOVES = 1000


class AliasStore:
    """Pointers into the model store."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    def get(self, role: Role | str, alias: Alias = "current") -> str | None:
        value = self.redis.hget(aliases_key(role), alias)
        return None if value is None else str(value)

    def all(self, role: Role | str) -> dict[str, str]:
        return dict(self.redis.hgetall(aliases_key(role)))

    def history(self, role: Role | str, limit: int = 100) -> list[AliasMove]:
        """Moves of `current`, newest first; those before this was kept are not there."""
        kept = self.redis.lrange(alias_history_key(role), 0, limit - 1)
        return [AliasMove.model_validate_json(move) for move in kept]

    def set(self, role: Role, alias: Alias, version: str, by: str = TRAINER) -> None:
        """by: id of a key, or `TRAINER`."""
        self._run(_SET, role, version, by, "", alias)

    def promote(
        self, role: Role, version: str, by: str = TRAINER, note: str = "", *, expect: str | None = None
    ) -> None:
        """`current` becomes `previous`, `version` becomes `current`; a no-op when it already is.

        expect: Conflict unless this is what is current now; "": nothing is. None: whatever is.
        """
        found = self._run(_PROMOTE, role, version, by, note, "" if expect is None else f"={expect}")
        if isinstance(found, str):
            told = f"'{found}'" if found else "no version"
            raise Conflict(f"{told} is the current {role} version now. Look again, then say with `replaces` what is.")

    def roll_back(self, role: Role, by: str = TRAINER) -> str:
        """Swap `current` and `previous`; the version that is current now."""
        version = self._run(_ROLL_BACK, role, "", by, "rolled back", "")
        if version is None:
            raise Conflict(f"There is no previous {role} version to go back to.", code="no_previous_version")
        return str(version)

    def _run(self, script: str, role: str, version: str, by: str, note: str, last: str) -> Any:
        """Every script gets the same words, with those that only the move's note needs at the end."""
        told = json.dumps({"when": round(time.time(), 3), "by": by, "note": note}, ensure_ascii=False)
        return self.redis.eval(
            script + _NOTE, 2, aliases_key(role), alias_history_key(role), version, last, told, KEPT_MOVES - 1
        )


_SET = """
local before = redis.call('HGET', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[1], ARGV[2], ARGV[1])
if ARGV[2] ~= 'current' or before == ARGV[1] then return 0 end
local after, result = ARGV[1], 1
"""
_PROMOTE = """
local before = redis.call('HGET', KEYS[1], 'current')
if ARGV[2] ~= '' and ARGV[2] ~= '=' .. (before or '') then return before or '' end
if before == ARGV[1] then return 0 end
if before then redis.call('HSET', KEYS[1], 'previous', before) end
redis.call('HSET', KEYS[1], 'current', ARGV[1])
local after, result = ARGV[1], 1
"""
_ROLL_BACK = """
local before = redis.call('HGET', KEYS[1], 'current')
local after = redis.call('HGET', KEYS[1], 'previous')
if not before or not after then return false end
redis.call('HSET', KEYS[1], 'previous', before, 'current', after)
local result = after
"""
_NOTE = """
local move = cjson.decode(ARGV[3])
move['version'] = after
if before then move['before'] = before end
redis.call('LPUSH', KEYS[2], cjson.encode(move))
redis.call('LTRIM', KEYS[2], 0, ARGV[4])
return result
"""
