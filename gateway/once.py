"""A request that makes a job, sent once or many times: what an Idempotency-Key means to a route.

"Running" is the time from when a request came to its reply. A second one with the same key is refused meanwhile; one
that comes after a process died takes the work over and makes the very job that was claimed
(`vcllm.stores.idempotency`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel
from redis.exceptions import RedisError

from gateway.state import GatewayState
from vcllm.contracts.base import digest
from vcllm.stores.idempotency import Claim, IdempotencyStore
from vcllm.stores.jobs import new_job_id

IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")
]


@contextmanager
def once(state: GatewayState, owner: str, key: str | None, what: str, request: BaseModel) -> Iterator[Claim]:
    """The claim to work under. When the block is left, the key leads to the claimed job if that exists, else nowhere.

    what: the route's name: the same words sent elsewhere are another request. Without a key every request is new.
    """
    if key is None:
        yield Claim(owner, "", new_job_id(), "", is_done=False)
        return
    claims = IdempotencyStore(state.redis)
    claim = claims.claim(owner, key, digest([what, request.model_dump(mode="json")]), new_job_id())
    try:
        yield claim
    except RedisError:
        raise  # nobody knows what was written: the claim is left for whoever asks again
    except Exception:
        with suppress(RedisError):
            _settle(state, claims, claim)
        raise
    _settle(state, claims, claim)


def still_at_work(state: GatewayState, claim: Claim) -> None:
    """For work that takes longer than a claim lasts by itself."""
    if claim.key and not claim.is_done:
        IdempotencyStore(state.redis).renew(claim)


def _settle(state: GatewayState, claims: IdempotencyStore, claim: Claim) -> None:
    if claim.is_done:
        return
    (claims.finish if state.jobs.has(claim.job) else claims.abandon)(claim)
