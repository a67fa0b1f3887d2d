"""The engine behind a role whose model writes, and what a scrape is told about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vcllm.engine.cache import bytes_per_token
from vcllm.engine.load import Loaded, context_of
from vcllm.engine.local import LocalEngine
from vcllm.engine.prefill import Limits
from vcllm.serving.pool import VersionPool
from vcllm.serving.settings import ServerSettings, WriterSettings


def cache_bytes(server: ServerSettings, config: Any, dtype: torch.dtype) -> int:
    """What the keys and values of one version may grow to; 0 on a server whose model writes nothing."""
    if not isinstance(server, WriterSettings):
        return 0
    full = server.max_rows * context_of(config) * bytes_per_token(config.get_text_config(), dtype)
    return min(int(server.cache_gib * 2**30), full)


PREFIX_SHARE = 8
"""One part in so many of a cache's memory keeps what prompts begin with."""


def writer(server: WriterSettings) -> Callable[[Loaded], LocalEngine]:
    """Makes engines with this server's limits."""

    def make(loaded: Loaded) -> LocalEngine:
        bytes_each = bytes_per_token(loaded.model.config.get_text_config(), loaded.model.dtype)
        num_tokens = int(server.cache_gib * 2**30) // bytes_each
        limits = Limits(
            max_rows=server.max_rows,
            max_tokens=num_tokens - num_tokens // PREFIX_SHARE,
            prefill_tokens=server.prefill_tokens,
            prefix_tokens=num_tokens // PREFIX_SHARE,
        )
        return LocalEngine(loaded, limits, default_max_tokens=server.default_max_tokens, own=True)

    return make


def rows(pool: VersionPool[LocalEngine]) -> int:
    """Answers being written, by all versions together."""
    return sum(len(held.model.batch.rows) for held in pool.held)


def dead(engine: LocalEngine) -> bool:
    """Whether it will never answer again."""
    return not engine.alive


class EngineCollector(Collector):
    """Reads the engines when asked."""

    def __init__(self, pool: VersionPool[LocalEngine]) -> None:
        self.pool = pool

    def collect(self) -> Iterator[Metric]:
        rows = GaugeMetricFamily("vc_engine_rows", "Answers being written.", labels=("version",))
        waiting = GaugeMetricFamily("vc_engine_waiting", "Requests not begun.", labels=("version",))
        tokens = CounterMetricFamily("vc_engine_tokens", "Tokens written since loading.", labels=("version",))
        for held in self.pool.held:
            batch = held.model.batch
            rows.add_metric((held.version,), len(batch.rows))
            waiting.add_metric((held.version,), len(batch.waiting))
            tokens.add_metric((held.version,), batch.num_tokens)
        yield from (rows, waiting, tokens)
