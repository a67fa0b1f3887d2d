"""The serving of a role whose model writes: here, or on an upstream server where one is configured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector

from vcllm.contracts.manifests import Role
from vcllm.engine.remote import RemoteEngine
from vcllm.serving.pool import VersionPool
from vcllm.serving.remote import FixedModel, RemoteOpener
from vcllm.serving.service import Serving, build_serving, connect
from vcllm.serving.settings import WriterSettings
from vcllm.serving.upstream_metrics import UpstreamCollector
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore

if TYPE_CHECKING:
    from vcllm.engine.load import Loaded
    from vcllm.engine.local import LocalEngine


def build_writer(
    role: Role,
    server: WriterSettings,
    shared: Settings,
    engine: Callable[[Loaded], LocalEngine] | None = None,
) -> tuple[Serving[Any], Sequence[Collector]]:
    """A serving of engines, whichever they are, and what a scrape is told of them; nothing is opened yet.

    engine: makes of a version loaded here what answers; None: one with the server's limits.
    """
    if server.upstream_url:
        return behind_upstream(role, server, shared), [UpstreamCollector(server)] if server.upstream_metrics else []
    from vcllm.serving.writers import EngineCollector, dead, rows, writer  # bring torch, needless with an upstream

    wrap = engine or writer(server)
    if server.model_path is not None:
        local = from_folder(role, server.model_path, server, shared, wrap)
    else:
        local = build_serving(role, "causal", server, shared, wrap, running=rows, dead=dead)
    return local, [EngineCollector(local.pool)]


def from_folder(
    role: Role, folder: Path, server: WriterSettings, shared: Settings, wrap: Callable[[Loaded], LocalEngine]
) -> Serving[LocalEngine]:
    """The model of one folder is current, for ever."""
    from vcllm.engine.load import Loader
    from vcllm.serving.folder import FolderOpener
    from vcllm.serving.writers import dead, rows

    opener = FolderOpener(folder, Loader("causal", device=server.device, dtype=server.dtype), wrap)
    store, named = ModelStore(shared.models), FixedModel(opener.name)
    return connect(role, server, shared, store, opener, named=named, running=rows, dead=dead)


def behind_upstream(role: Role, server: WriterSettings, shared: Settings) -> Serving[RemoteEngine]:
    """With an upstream that cannot be reached a role is not broken: it answers again when the upstream does."""
    store = ModelStore(shared.models)
    fixed = FixedModel(server.upstream_model) if server.upstream_model else None
    return connect(role, server, shared, store, RemoteOpener(store, role, server), named=fixed, running=asked_for)


def asked_for(pool: VersionPool[RemoteEngine]) -> int:
    """Answers that upstreams work on, of all versions together."""
    return sum(held.model.num_asked for held in pool.held)
