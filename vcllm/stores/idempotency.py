"""Requests that may be sent again: one Idempotency-Key makes one job, whoever sends it how often, whoever dies.

A key is claimed before any work is done for it. The claim names the job that the request will make, so that whoever
takes over from a process that died makes that very job and no other. Three things may be found under a key:

    a claim being worked on     its owner renews nothing; it has `BUSY_S` to reply
    a claim left behind         that time is over and nobody replied: the next to ask takes it over, same job
    a claim that is done        its job exists

Does not know what a request asks for, only a digest of it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from redis import Redis

from vcllm.contracts.problems import Conflict, Unprocessable
from vcllm.stores.connect import idempotency_busy_key, idempotency_key

KEPT_S = 24 * 3600
"""How long a key leads to its job."""
BUSY_S = 30.0
"""How long a request that says nothing more is taken to be still at work. Longer than any create takes but one that
checks a large file, which says that it is still there."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a request, or the job that came of it."""

    owner: str
    key: str
    job: str
    token: str
    is_done: bool
    """The request was answered before: `job` exists, there is nothing left to do."""


class IdempotencyStore:
    """Claims on idempotency keys; keys of different owners do not meet."""

    def __init__(self, redis: Redis, busy_s: float = BUSY_S) -> None:
        self.redis: Any = redis
        self.busy_s = busy_s

    def claim(self, owner: str, key: str, request: str, job: str) -> Claim:
        """The first to come claims the key; a later one gets what there is.

        request: a digest of everything that was asked. job: what a new claim would make.
        Unprocessable when the key was used for another request; Conflict while the same one is being worked on.
        """
        token = secrets.token_hex(8)
        keys = (idempotency_key(owner, key), idempotency_busy_key(owner, key))
        found, state = self.redis.eval(_CLAIM, 2, *keys, request, job, token, KEPT_S, int(self.busy_s * 1000))
        if state == "other":
            raise Unprocessable(
                "This Idempotency-Key was used for another request. Send a new key with a new request.",
                code="idempotency_conflict",
                param="Idempotency-Key",
            )
        if state == "busy":
            raise Conflict(
                "The first request with this Idempotency-Key is still being worked on. Ask for its job in a moment, "
                "with the same key.",
                code="idempotency_in_progress",
                param="Idempotency-Key",
            )
        return Claim(owner, key, str(found), token, is_done=state == "done")

    def renew(self, claim: Claim) -> None:
        """Say that the work goes on; without effect once somebody else has taken the claim over."""
        self.redis.eval(_RENEW, 1, idempotency_busy_key(claim.owner, claim.key), claim.token, int(self.busy_s * 1000))

    def finish(self, claim: Claim) -> None:
        """From now on the key leads to its job, which must exist."""
        keys = (idempotency_key(claim.owner, claim.key), idempotency_busy_key(claim.owner, claim.key))
        self.redis.eval(_FINISH, 2, *keys, claim.job, claim.token, KEPT_S)

    def abandon(self, claim: Claim) -> None:
        """Forget the key: the request was refused and nothing was made of it. Not when somebody took it over."""
        keys = (idempotency_key(claim.owner, claim.key), idempotency_busy_key(claim.owner, claim.key))
        self.redis.eval(_ABANDON, 2, *keys, claim.token)


_CLAIM = """
local kept = redis.call('HMGET', KEYS[1], 'request', 'job', 'done')
if kept[1] and kept[1] ~= ARGV[1] then return {kept[2], 'other'} end
if kept[3] then return {kept[2], 'done'} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {kept[2] or '', 'busy'} end
local job = kept[2] or ARGV[2]
redis.call('HSET', KEYS[1], 'request', ARGV[1], 'job', job)
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[5])
return {job, 'claimed'}
"""
_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_FINISH = """
if redis.call('HGET', KEYS[1], 'job') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'done', 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
return 1
"""
_ABANDON = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1], KEYS[2])
"""
