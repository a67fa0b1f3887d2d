"""The gateway's own metrics, read from its state when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.state import GatewayState
from vcllm.web.breaker import BreakerState

BREAKER_STATES = {BreakerState.CLOSED: 0, BreakerState.TRYING: 1, BreakerState.OPEN: 2}
"""As the metrics tell them."""


class Upstreams(Collector):
    """Which replicas are up, and how busy each is, read when metrics are asked for."""

    def __init__(self, state: Callable[[], GatewayState | None]) -> None:
        self.state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = self.state()
        up = GaugeMetricFamily("vc_upstream_up", "1: requests are sent there.", labels=("role", "replica"))
        busy = GaugeMetricFamily("vc_upstream_inflight", "Answers not finished.", labels=("role", "replica"))
        text = "0: requests are sent there; 1: one tries; 2: none, it failed again and again."
        breaker = GaugeMetricFamily("vc_breaker_state", text, labels=("role", "replica"))
        tables = {"actor": state.actors, "critic": state.guard.critics.table} if state else {}
        for role, replica in ((role, one) for role, table in tables.items() if table for one in table.replicas):
            up.add_metric((role, replica.name), float(replica.up))
            busy.add_metric((role, replica.name), replica.in_flight)
            breaker.add_metric((role, replica.name), BREAKER_STATES[replica.breaker.state])
        yield from (up, busy, breaker)


class Door(Collector):
    """Who was turned away: by the limits of keys, or because all places were taken."""

    def __init__(self, state: Callable[[], GatewayState | None]) -> None:
        self.state = state

    def collect(self) -> Iterator[CounterMetricFamily]:
        state = self.state()
        refused = CounterMetricFamily("vc_rejected", "Requests refused, by what was used up.", labels=("reason",))
        for reason, number in (state.quota.refused + state.door.refused).items() if state else ():
            refused.add_metric((reason,), number)
        yield refused
