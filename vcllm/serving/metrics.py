"""What a scrape is told about versions: which are loaded, which is current, which waits or was refused."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from vcllm.serving.watcher import AliasWatcher


class VersionCollector(Collector):
    """Reads the pool when asked, so nothing here can go stale."""

    def __init__(self, watcher: AliasWatcher) -> None:
        self.watcher = watcher

    def collect(self) -> Iterator[Metric]:
        role, held, current = self.watcher.role, self.watcher.pool.held, self.watcher.pool.current
        labels = ("role", "version")
        loaded = GaugeMetricFamily("vc_loaded_version", "1: the current version; 0: another.", labels=labels)
        info = GaugeMetricFamily("vc_version_info", "1: the version served now.", labels=(*labels, "sha"))
        for each in held:
            loaded.add_metric((role, each.version), float(each.version == current))
            if each.version == current:
                info.add_metric((role, each.version, each.checksum), 1.0)
        yield from (loaded, info)
        yield from self._changes(role)

    def _changes(self, role: str) -> Iterator[Metric]:
        pending, labels = self.watcher.pending, ("role",)
        text = "1: a version was named current and is being loaded, waits for memory, or is refused."
        waiting = GaugeMetricFamily("vc_version_pending", text, labels=("role", "version", "state"))
        if pending is not None:
            state = "refused" if pending.refused else "waiting" if pending.reason else "loading"
            waiting.add_metric((role, pending.version, state), 1.0)
        yield waiting
        seconds = SummaryMetricFamily(
            "vc_swap_seconds", "From a version's being named to its being current.", labels=labels
        )
        seconds.add_metric((role,), self.watcher.num_switches, self.watcher.switching_s)
        yield seconds
        refused = CounterMetricFamily("vc_versions_refused", "Failed checks of versions.", labels=labels)
        refused.add_metric((role,), self.watcher.num_refused)
        yield refused
