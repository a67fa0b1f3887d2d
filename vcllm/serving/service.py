"""The frame of a model server: its pool, its watcher, its door, and the routes every one of them has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastapi import Depends, FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from vcllm.contracts.manifests import Role
from vcllm.serving.metrics import VersionCollector
from vcllm.serving.pool import Closable, VersionPool
from vcllm.serving.settings import ServerSettings
from vcllm.serving.watcher import Aliases, AliasWatcher
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore
from vcllm.web.admission import Admission
from vcllm.web.app import create_service
from vcllm.web.auth import internal_only
from vcllm.web.health import add_health
from vcllm.web.metrics import add_metrics

if TYPE_CHECKING:
    from vcllm.engine.load import Kind, Loaded

VERSION_HEADER = "x-vc-version"
"""Names the exact version that made a reply."""

M = TypeVar("M", bound=Closable)


@dataclass(frozen=True, slots=True)
class Serving(Generic[M]):
    """What the routes of a model server work with."""

    store: ModelStore
    aliases: AliasStore
    pool: VersionPool[M]
    watcher: AliasWatcher
    door: Admission


def build_serving(
    role: Role, kind: Kind, server: ServerSettings, shared: Settings, wrap: Callable[[Loaded], M]
) -> Serving[M]:
    """Connect the parts; nothing is opened yet. `wrap` makes of a loaded model what the routes use."""
    from vcllm.engine.load import Loader  # these bring torch, which a role with an upstream does without
    from vcllm.serving.versions import VersionOpener

    store = ModelStore(shared.models)
    opener = VersionOpener(store, role, Loader(kind, device=server.device, dtype=server.dtype))
    return follow(role, server, shared, store, lambda version: wrap(opener.open(version)))


def follow(
    role: Role,
    server: ServerSettings,
    shared: Settings,
    store: ModelStore,
    open_version: Callable[[str], M],
    current: Aliases | None = None,
) -> Serving[M]:
    """The same for versions that are opened in any way. current: None: what Redis says is current."""
    pool = VersionPool[M](open_version, server.max_loaded)
    # No patience: the watcher asks again soon anyway, and a model list can do without aliases.
    aliases = AliasStore(open_redis(shared.redis_url, patience=0))
    watcher = AliasWatcher(current or aliases, role, pool, server.poll_s)
    return Serving(store, aliases, pool, watcher, Admission(server.max_waiting))


def serve_role(serving: Serving[Any], shared: Settings, *collectors: Collector) -> FastAPI:
    """An app with health and metrics that follows the alias while it lives."""
    app = create_service(serving.watcher.role, lifespan=_lifespan(serving))
    registry = CollectorRegistry()
    for collector in (VersionCollector(serving.watcher), *collectors):
        registry.register(collector)
    add_health(app, ready=lambda: serving.watcher.missing)
    add_metrics(app, registry, dependencies=[guard(shared)])
    return app


def guard(shared: Settings) -> Any:
    """The dependency of every route that does work: only services that know the internal token get in."""
    return Depends(internal_only(shared.internal_token))


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
