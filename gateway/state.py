"""What the gateway holds open while it runs, as the routes receive it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis import Redis

from gateway.audit import Auditor
from gateway.fine_tuning.checking import Checker
from gateway.guarding.guard import Guard
from gateway.keyring import KeyRing
from gateway.lookups import Lookups
from gateway.queue import JobQueue
from gateway.quotas.limits import Limits
from gateway.quotas.sharing import Sharing
from gateway.settings import GatewaySettings
from vcllm.contracts.jobs import JobRecord
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.events import EventLog
from vcllm.stores.files import FileStore
from vcllm.stores.gated import RedisGate
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore
from vcllm.web.admission import Admission
from vcllm.web.replicas import ReplicaTable


@dataclass
class GatewayState:
    """Stores are synchronous: a route that uses one is a plain `def`, or goes through a thread."""

    settings: Settings
    limits: GatewaySettings
    gate: RedisGate
    """Whether the stores can be used right now."""
    redis: Redis
    keys: KeyRing
    quota: Limits
    """What each key may still do; `limits` is what the settings allow."""
    sharing: Sharing
    audit: Auditor
    aliases: AliasStore
    actor_aliases: Lookups[dict[str, str]]
    models: ModelStore
    jobs: JobStore
    files: FileStore
    checker: Checker
    events: EventLog
    queue: JobQueue
    actors: ReplicaTable
    guard: Guard
    door: Admission

    def note_state(self, record: JobRecord) -> None:
        """Tell the job's followers a change of state that was made here."""
        self.events.append(record.id, "state", state=record.state)


def state_of(request: Request) -> GatewayState:
    state: GatewayState = request.state.gateway
    return state


State = Annotated[GatewayState, Depends(state_of)]
