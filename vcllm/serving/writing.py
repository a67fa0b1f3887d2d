"""The serving of a role whose model writes: here, or on an upstream server where one is configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client.registry import Collector

from vcllm.contracts.manifests import Role
from vcllm.serving.remote import FixedModel, RemoteOpener
from vcllm.serving.service import Serving, build_serving, follow
from vcllm.serving.settings import WriterSettings
from vcllm.serving.upstream_metrics import UpstreamCollector
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore


def build_writer(role: Role, server: WriterSettings, shared: Settings) -> tuple[Serving[Any], Sequence[Collector]]:
    """A serving of engines, whichever they are, and what a scrape is told of them; nothing is opened yet."""
    if server.upstream_url:
        store = ModelStore(shared.models)
        fixed = FixedModel(server.upstream_model) if server.upstream_model else None
        serving = follow(role, server, shared, store, RemoteOpener(store, role, server).open, fixed)
        return serving, [UpstreamCollector(server)] if server.upstream_metrics else []
    from vcllm.serving.writers import EngineCollector, writer  # brings torch, which an upstream makes needless

    local = build_serving(role, "causal", server, shared, writer(server))
    return local, [EngineCollector(local.pool)]
