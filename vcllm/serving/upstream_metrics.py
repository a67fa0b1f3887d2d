"""The upstream server's own metrics, shown beside ours, so that dashboards made for it go on working."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from vcllm.engine.upstream import authorization
from vcllm.serving.remote import upstream_of
from vcllm.serving.settings import WriterSettings

PREFIXES = ("vllm:", "sglang:")
MAX_BYTES = 4 << 20
WAIT_S = 2.0
"""For the whole answer is not bounded by httpx, but each wait within it is, and so is what is read."""


class UpstreamCollector(Collector):
    """Asks the upstream when a scrape asks us, for a short while only."""

    def __init__(self, server: WriterSettings) -> None:
        self.upstream = upstream_of(server)

    def collect(self) -> Iterator[Metric]:
        try:
            families = list(text_string_to_metric_families(self._scrape()))
        except (httpx.HTTPError, ValueError):
            families = []
        told = [family for family in families if family.name.startswith(PREFIXES)]
        yield GaugeMetricFamily("vc_upstream_up", "1: the upstream tells its metrics.", float(bool(told)))
        yield from told

    def _scrape(self) -> str:
        body, client = bytearray(), httpx.Client(timeout=WAIT_S, trust_env=False, follow_redirects=False)
        headers = {"accept-encoding": "identity"} | authorization(self.upstream)
        with client, client.stream("GET", f"{self.upstream.url}/metrics", headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"it answered {response.status_code}")
            for piece in response.iter_raw():
                body += piece
                if len(body) > MAX_BYTES:
                    raise ValueError("it sent too much")
        return body.decode()
