"""What a scrape is told about versions: which are loaded, which is current, how many were refused."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vcllm.serving.watcher import AliasWatcher


class VersionCollector(Collector):
    """Reads the pool when asked, so nothing here can go stale."""

    def __init__(self, watcher: AliasWatcher) -> None:
        self.watcher = watcher

    def collect(self) -> Iterator[Metric]:
        role, pool, labels = self.watcher.role, self.watcher.pool, ("role", "version")
        loaded = GaugeMetricFamily("vc_loaded_version", "1: the current version; 0: another.", labels=labels)
        for held in pool.held:
            loaded.add_metric((role, held.version), float(held.version == pool.current))
        yield loaded
        refused = CounterMetricFamily("vc_versions_refused", "Failed checks of versions.", labels=("role",))
        refused.add_metric((role,), self.watcher.num_refused)
        yield refused
