"""The guard in numbers. Labels are the closed vocabularies of `vcllm.contracts.guard`, never a key or a text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class GuardMeter:
    """What checks take, and what comes of them; replies without a guard are in none of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Time of a guard's check."
        self.seconds = Histogram("vc_guard_seconds", text, ("stage",), registry=registry, buckets=BOUNDS_S)
        self.verdicts = Counter("vc_verdict_total", "Replies under a guard.", ("verdict",), registry=registry)
        self.outages = Counter("vc_guard_outages_total", "Checks that the Critic did not answer.", registry=registry)
