"""What the gateway holds open while it runs, and what it does beside answering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from gateway.anchors import AnchorKeeper
from gateway.audit import Auditor
from gateway.fine_tuning.checking import Checker
from gateway.first_key import make_first_key
from gateway.guarding.guard import Guard
from gateway.keyring import KeyRing
from gateway.lookups import Lookups
from gateway.queue import CeleryQueue, JobQueue
from gateway.quotas.accounts import Defaults
from gateway.quotas.limits import Limits
from gateway.quotas.sharing import Sharing
from gateway.settings import GatewaySettings
from gateway.state import GatewayState
from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Problem
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_copy import copy_of
from vcllm.stores.events import EventLog
from vcllm.stores.files import FileStore
from vcllm.stores.gated import LOOK_EVERY_S, RedisGate
from vcllm.stores.jobs import JobStore
from vcllm.stores.limits import LimitStore
from vcllm.stores.models import ModelStore, NoSpace
from vcllm.web.admission import Admission
from vcllm.web.replicas import ReplicaTable
from vcllm.web.tokens import Signer
from vcllm.web.tracing import outgoing_headers, traceparent

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_state(
    settings: Settings, limits: GatewaySettings, queue: JobQueue | None, guarding: Guard
) -> AsyncIterator[GatewayState]:
    """The gateway's state while it runs; everything it opens is closed again."""
    gate = RedisGate(settings.redis_url)
    redis = gate.redis
    sender = queue or CeleryQueue(settings.redis_url)
    actors = ReplicaTable(
        settings.urls("actor"),
        silence_s=limits.answer_timeout_s,
        headers=partial(told, Signer(settings.internal_token, "gateway"), "actor"),
    )
    keys = KeyRing(KeyStore(redis, settings.pepper), limits.key_ttl_s, limits.key_grace_s)
    quota = Limits(Defaults(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_chats))
    sharing = Sharing(quota, LimitStore(redis), keys.used)
    auditor = Auditor(AuditLog(redis))
    async with actors:
        state = GatewayState(
            settings=settings,
            limits=limits,
            gate=gate,
            redis=redis,
            keys=keys,
            quota=quota,
            sharing=sharing,
            audit=auditor,
            aliases=AliasStore(redis),
            actor_aliases=Lookups(limits.alias_ttl_s, limits.key_grace_s),
            models=ModelStore(settings.models),
            jobs=JobStore(redis, settings.lease_s, traceparent=traceparent),
            files=FileStore(settings.home / "files"),
            checker=Checker(),
            events=EventLog(redis),
            queue=sender,
            actors=actors,
            guard=guarding,
            door=Admission(limits.max_chats),
        )
        anchors = AnchorKeeper(auditor.store, copy_of(settings.home))
        await _say_first_key(keys.store, settings)
        beside = [asyncio.create_task(work) for work in (_watch_redis(gate), sharing.run(), anchors.keep())]
        try:
            yield state
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await auditor.close()
            sender.close()
            gate.close()


def told(signer: Signer, role: Role) -> dict[str, str]:
    """Who asks, and in which request and trace; a probe is in none."""
    return {**signer.headers(role), **outgoing_headers()}


async def _say_first_key(keys: KeyStore, settings: Settings) -> None:
    """Printed, because it is for whoever starts the gateway; the key itself is in a file only."""
    try:
        told = await to_thread.run_sync(make_first_key, keys, settings.home)
    except (RedisError, OSError, Problem, NoSpace) as error:
        log.warning("Whether there is an API key could not be found out: %s.", type(error).__name__)
        return
    if told is not None:
        print(told, flush=True)


async def _watch_redis(gate: RedisGate) -> None:
    """Keep what is known of Redis true to the facts, without anybody waiting for it."""
    thread = CapacityLimiter(1)
    while True:
        await to_thread.run_sync(gate.look, limiter=thread, abandon_on_cancel=True)
        await asyncio.sleep(LOOK_EVERY_S)
