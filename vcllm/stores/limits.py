"""What several gateways know together of the keys they serve: what is left of limits, and what was used.

A gateway tells what it spent and hears what is left, for many keys in one trip. It numbers its trips: one that is
made again, because its answer was lost, counts once. Knows nothing of how a gateway decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis

from vcllm.contracts.keys import Budget, DayUsage, KeyRecord, KeyUsage, Period
from vcllm.stores.connect import GATEWAYS, KEYS_USED, gateway_key, limits_key, usage_key

ALIVE_S = 10.0
"""A gateway that was silent for longer no longer counts, nor do the chats it held."""
KEPT_DAYS = 400
"""How long the usage of a day or month can be asked for."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one gateway adds to one account since its last trip, and the limits it holds the account to."""

    account: str
    requests: int = 0
    tokens: int = 0
    """Used, for the budget and the books."""
    requests_taken: float = 0.0
    """From the bucket of requests; below 0: given back."""
    tokens_taken: float = 0.0
    """From the bucket of tokens, where estimates are taken first and corrected later."""
    requests_per_minute: int = 0
    """0: there is no limit, and no bucket; so below."""
    tokens_per_minute: int = 0
    chats: int = 0
    """Being answered here at this moment."""


@dataclass(frozen=True, slots=True)
class Left:
    """What all gateways together have left of one account."""

    requests: float
    """In the bucket; below 0: more was spent than there was."""
    tokens: float
    chats_elsewhere: int
    used_today: int
    """Tokens; so below."""
    used_this_month: int


@dataclass(frozen=True, slots=True)
class Shared:
    """The answer to a trip."""

    num_gateways: int
    """Alive, the asking one among them."""
    left: Mapping[str, Left]


def period_name(period: Period, when: float) -> str:
    """The name of the day or month, in UTC, that a Unix second lies in."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d" if period is Period.DAY else "%Y-%m")


def period_end(period: Period, when: float) -> float:
    """The Unix second at which the period that `when` lies in is over."""
    day = datetime.fromtimestamp(when, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return (day + timedelta(days=1)).timestamp()
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


class LimitStore:
    """The shared side of the gateways' limits."""

    def __init__(self, redis: Redis, clock: Callable[[], float] | None = None) -> None:
        """clock: Unix seconds; None: Redis' own, which all gateways share."""
        self.redis: Any = redis
        self._clock = clock

    def exchange(self, gateway: str, trip: int, spent: Sequence[Spent], used: Mapping[str, float]) -> Shared:
        """Add what a gateway spent, and say what is left of those accounts.

        trip: rises by one; the same number again adds nothing. used: key id to the Unix second it was last used.
        """
        wall = self._now()
        day, month = period_name(Period.DAY, wall), period_name(Period.MONTH, wall)
        keys = [GATEWAYS, gateway_key(gateway), KEYS_USED]
        for each in spent:
            keys += [limits_key(each.account), usage_key(each.account, day), usage_key(each.account, month)]
        flat_used = [str(part) for pair in used.items() for part in pair]
        now = repr(wall) if self._clock else ""
        args = [now, gateway, trip, ALIVE_S, KEPT_DAYS * 86400, len(spent), *_flat(spent), *flat_used]
        num_gateways, *rows = self.redis.eval(_EXCHANGE, len(keys), *keys, *args)
        left = {each.account: _left(row) for each, row in zip(spent, rows, strict=True)}
        return Shared(num_gateways=int(num_gateways), left=left)

    def leave(self, gateway: str) -> None:
        """The gateway stops: what the others may use is theirs at once."""
        self.redis.zrem(GATEWAYS, gateway)

    def usage_of(self, record: KeyRecord, days: int) -> KeyUsage:
        """Of a key's account, day by day, and what is used of its budget."""
        account, budget = record.counted_as, record.budget
        return KeyUsage(
            id=record.id,
            account=account,
            budget=budget,
            used=None if budget is None else self._used(account, budget),
            data=self._by_day(account, days),
        )

    def _by_day(self, account: str, days: int) -> list[DayUsage]:
        """The last `days` days, today among them, newest first."""
        today = datetime.fromtimestamp(self._now(), UTC)
        names = [(today - timedelta(days=back)).strftime("%Y-%m-%d") for back in range(days)]
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(usage_key(account, name), "requests", "tokens")
            rows = pipe.execute()
        return [
            DayUsage(day=name, requests=int(requests or 0), tokens=int(tokens or 0))
            for name, (requests, tokens) in zip(names, rows, strict=True)
            if requests is not None
        ]

    def _used(self, account: str, budget: Budget) -> int:
        name = period_name(budget.period, self._now())
        return int(self.redis.hget(usage_key(account, name), "tokens") or 0)

    def _now(self) -> float:
        return self._clock() if self._clock else time.time()


def _flat(spent: Iterable[Spent]) -> list[Any]:
    return [
        value
        for each in spent
        for value in (
            each.requests_per_minute,
            repr(each.requests_taken),
            each.tokens_per_minute,
            repr(each.tokens_taken),
            each.chats,
            each.requests,
            each.tokens,
        )
    ]


def _left(row: Sequence[Any]) -> Left:
    requests, tokens, chats_elsewhere, today, month = row
    return Left(float(requests), float(tokens), int(chats_elsewhere), int(today), int(month))


_EXCHANGE = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1e6
end
local gateway, alive_s, kept_s, num_accounts = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local counted = redis.call('GET', KEYS[2]) == ARGV[3]
redis.call('SET', KEYS[2], ARGV[3], 'EX', 86400)
redis.call('ZADD', KEYS[1], string.format('%.6f', now), gateway)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.6f', now - alive_s))
local reply = {redis.call('ZCARD', KEYS[1])}

local function pour(hash, field, per_minute, taken, elapsed)
  local known = redis.call('HMGET', hash, field, field .. '_per_minute')
  local rate = tonumber(known[2] or per_minute)
  if rate == 0 then return 0, 0 end
  local level = math.min(rate, tonumber(known[1] or rate) + elapsed * rate / 60)
  if per_minute > 0 then rate = per_minute
  elseif level == rate then
    redis.call('HDEL', hash, field, field .. '_per_minute')
    return 0, 0
  end
  level = math.min(rate, level)
  if not counted then level = math.min(rate, level - taken) end
  redis.call('HSET', hash, field, string.format('%.6f', level), field .. '_per_minute', rate)
  return level, (rate - level) * 60 / rate
end

local function chats_elsewhere(hash, chats)
  if chats > 0 then redis.call('HSET', hash, 'chats:' .. gateway, chats)
  else redis.call('HDEL', hash, 'chats:' .. gateway) end
  local sum, fields = 0, redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    local other = string.match(fields[i], '^chats:(.*)$')
    if other and other ~= gateway then
      if redis.call('ZSCORE', KEYS[1], other) then sum = sum + fields[i + 1]
      else redis.call('HDEL', hash, fields[i]) end
    end
  end
  return sum
end

local function count(hash, requests, tokens)
  if not counted and (requests > 0 or tokens > 0) then
    redis.call('HINCRBY', hash, 'requests', requests)
    redis.call('HINCRBY', hash, 'tokens', tokens)
    redis.call('EXPIRE', hash, kept_s)
  end
  return tonumber(redis.call('HGET', hash, 'tokens') or 0)
end

for account = 1, num_accounts do
  local key, arg = 3 + (account - 1) * 3, 6 + (account - 1) * 7
  local hash, fields = KEYS[key + 1], {}
  for i = 1, 7 do fields[i] = tonumber(ARGV[arg + i]) end
  local at = math.max(now, tonumber(redis.call('HGET', hash, 'at') or now))
  local elapsed = at - tonumber(redis.call('HGET', hash, 'at') or at)
  local requests, full_in = pour(hash, 'requests', fields[1], fields[2], elapsed)
  local tokens, also_in = pour(hash, 'tokens', fields[3], fields[4], elapsed)
  local elsewhere = chats_elsewhere(hash, fields[5])
  redis.call('HSET', hash, 'at', string.format('%.6f', at))
  redis.call('PEXPIRE', hash, math.ceil((math.max(full_in, also_in, 0) + 60) * 1000))
  local today = count(KEYS[key + 2], fields[6], fields[7])
  local month = count(KEYS[key + 3], fields[6], fields[7])
  reply[account + 1] = {
    string.format('%.6f', requests), string.format('%.6f', tokens), elsewhere, today, month
  }
end
for i = 7 + num_accounts * 7, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
return reply
"""
