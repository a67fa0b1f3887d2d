"""The frame of a model server: its pool, its watcher, its door, and the routes every one of them has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastapi import Depends, FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from pydantic import SecretStr

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Problem
from vcllm.engine.protocol import Generation
from vcllm.serving.costs import answer_tokens
from vcllm.serving.metrics import DoorCollector, Meter, VersionCollector
from vcllm.serving.pool import Closable, VersionPool, Versions
from vcllm.serving.settings import ServerSettings, WriterSettings
from vcllm.serving.watcher import Aliases, AliasWatcher
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore
from vcllm.stores.servers import ServerStore
from vcllm.web.admission import Admission, Entry
from vcllm.web.app import Service, create_service
from vcllm.web.auth import scrapers_only, services_only
from vcllm.web.doorkeeper import Doorkeeper
from vcllm.web.health import add_health
from vcllm.web.metrics import add_metrics

if TYPE_CHECKING:
    from vcllm.engine.load import Kind, Loaded

VERSION_HEADER = "x-vc-version"
"""Names the exact version that made a reply."""
QUEUE_HEADER = "x-vc-queue-ms"
"""How long a whole answer waited before work on it began."""
STARTING = "The first version is being looked for."
ENGINE_DEAD = "The engine of a loaded version has died. Start this server again."
ENDING = "This server is shutting down."

M = TypeVar("M", bound=Closable)


@dataclass(frozen=True, slots=True)
class Serving(Generic[M]):
    """What the routes of a model server work with."""

    store: ModelStore
    aliases: AliasStore
    pool: VersionPool[M]
    watcher: AliasWatcher
    door: Admission
    fingerprint: Callable[[str], str | None]
    """Of a version: tells it from any other of the same name."""
    keep_alive_s: float
    meter: Meter
    dead: Callable[[M], bool]
    """Whether a loaded version will never answer again."""
    default_max_tokens: int
    """Of an answer whose request names no limit."""

    def admit(
        self, conversations: Sequence[Sequence[ChatMessage]], max_tokens: int | None, n: int = 1
    ) -> AbstractAsyncContextManager[Entry]:
        """Hold room for n answers to each conversation; Overloaded when there is none."""
        tokens = answer_tokens(conversations, max_tokens or self.default_max_tokens, n)
        return self.door.enter(len(conversations) * n, tokens)

    def correct(self, entry: Entry, generation: Generation, max_tokens: int | None, n: int) -> None:
        """Replace the guess by what the engine has counted, where it has."""
        if generation.num_prompt_tokens:
            entry.correct(n * (generation.num_prompt_tokens + (max_tokens or self.default_max_tokens)))

    @property
    def broken(self) -> str | None:
        """Why this process can never be well again; None: it can."""
        return ENGINE_DEAD if any(self.dead(held.model) for held in self.pool.held) else None

    @property
    def starting(self) -> str | None:
        """Why it is not yet known what this server can serve; None: it is known."""
        known = self.pool.current is not None or self.watcher.looked
        return None if known else self.watcher.missing if not self.watcher.reachable else STARTING


def build_serving(
    role: Role,
    kind: Kind | None,
    server: ServerSettings,
    shared: Settings,
    wrap: Callable[[Loaded], M],
    *,
    running: Callable[[VersionPool[M]], int] = lambda _: 0,
    dead: Callable[[M], bool] = lambda _: False,
) -> Serving[M]:
    """The serving of versions loaded here. `wrap` makes of a loaded model what the routes use.

    kind: of every version; None: each version's configuration says.
    """
    from vcllm.engine.load import Loader  # these bring torch, which a role with an upstream does without
    from vcllm.serving.versions import VersionOpener
    from vcllm.serving.writers import cache_bytes

    store = ModelStore(shared.models)
    opener = VersionOpener(
        store,
        role,
        Loader(kind, device=server.device, dtype=server.dtype),
        wrap,
        cache_bytes=partial(cache_bytes, server),
        reserve=int(server.memory_reserve_gib * 2**30),
    )
    return connect(role, server, shared, store, opener, running=running, dead=dead)


def connect(
    role: Role,
    server: ServerSettings,
    shared: Settings,
    store: ModelStore,
    versions: Versions[M],
    *,
    named: Aliases | None = None,
    running: Callable[[VersionPool[M]], int] = lambda _: 0,
    dead: Callable[[M], bool] = lambda _: False,
) -> Serving[M]:
    """Connect the parts around versions that come from anywhere; nothing is opened yet.

    named: says which is current; None: the aliases in Redis do.
    running: how many answers are being worked on; dead: whether a loaded version will never answer again.
    """
    pool = VersionPool[M](versions, server.max_loaded, server.load_s)
    # No patience: the watcher asks again soon anyway, and a model list can do without aliases.
    aliases = AliasStore(open_redis(shared.redis_url, patience=0))
    meter = Meter()
    watcher = AliasWatcher(
        named or aliases,
        role,
        pool,
        server.poll_s,
        memory_wait_s=server.memory_wait_s,
        server=f"{socket.gethostname()}:{server.port}",
        switched=meter.swap.observe,
        report=ServerStore(aliases.redis).put,
    )
    door = Admission(server.max_waiting, server.max_waiting_tokens, running=lambda: running(pool))
    default_max_tokens = server.default_max_tokens if isinstance(server, WriterSettings) else 0
    fingerprint, keep_alive_s = cache(partial(_fingerprint, store, role)), shared.keep_alive_s
    return Serving(store, aliases, pool, watcher, door, fingerprint, keep_alive_s, meter, dead, default_max_tokens)


def serve_role(serving: Serving[Any], shared: Settings, *collectors: Collector) -> Service:
    """An app with a guarded door, health and metrics, that follows the alias while it lives.

    Its `state.keeper` is the doorkeeper, for whoever ends the server.
    """
    app = create_service(serving.watcher.role, lifespan=_lifespan(serving), body_timeout_s=shared.body_timeout_s)
    assert isinstance(app, Service), "the doorkeeper stands outside everything"
    app.state.keeper = keeper = Doorkeeper(serving.door, app.routes)
    app.layers.append(keeper.guard)
    registry = CollectorRegistry()
    versions = VersionCollector(serving.watcher)
    for collector in (versions, DoorCollector(keeper), serving.meter, *collectors):
        registry.register(collector)
    add_health(
        app,
        ready=lambda: ENDING if keeper.draining else serving.broken or serving.watcher.missing,
        started=lambda: serving.starting,
        live=lambda: serving.broken,
    )
    add_metrics(app, registry, dependencies=[Depends(scrapers_only(shared.internal_token))])
    return app


def guard(shared: Settings, role: Role, key: SecretStr | None = None) -> Any:
    """The dependency of every route that does work: only services that this role answers get in, and who has `key`."""
    return Depends(services_only(shared.internal_token, role, key))


def _fingerprint(store: ModelStore, role: Role, version: str) -> str | None:
    """None: its folder has been removed while it is served."""
    try:
        return f"fp_{store.checksum(role, version)[:12]}"
    except (Problem, OSError):
        return None


def _lifespan(serving: Serving[Any]) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        serving.watcher.start()
        try:
            yield {"serving": serving}
        finally:
            await asyncio.to_thread(serving.watcher.stop)
            await asyncio.to_thread(serving.pool.close)
            serving.aliases.redis.close()

    return lifespan
