"""A gateway under steady load keeps to its memory: thousands of chats, streams and refusals leave nothing behind."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway_load import Task
from benchmarks.gateway_servers import REQUEST, Running, measure, mock_upstream, our_gateway

pytestmark = pytest.mark.slow

MOST_MB = 150
GROWTH_MB = 4
"""Of noise: what an allocator takes and gives back."""
CORE = min(os.sched_getaffinity(0))


def load(gateway: Running, **options: float) -> None:
    body = {**REQUEST, "stream": "streams" in options}
    found = measure(Task(gateway.port, body, dict(gateway.headers), warm_s=0.0, **options), CORE)  # type: ignore[arg-type]
    assert found.get("failed", 0) == found.get("broken", 0) == 0


def refused(gateway: Running, body: dict[str, Any], headers: dict[str, str]) -> None:
    task = Task(gateway.port, body, headers, concurrency=4, seconds=0.2, warm_s=0.0)
    found = measure(task, CORE)
    assert found["failed"] > 0 and found["answers"] == 0


def rounds(gateway: Running) -> None:
    load(gateway, concurrency=16, seconds=3.0)
    load(gateway, streams=100, ramp_s=0.2)
    for _ in range(5):  # a key that nobody has is looked up in Redis, each another one
        unknown = f"vck_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
        refused(gateway, REQUEST, {"authorization": f"Bearer {unknown}"})
    refused(gateway, {"messages": "x" * 100_000}, dict(gateway.headers))


def test_memory_stays_flat_under_load(tmp_path: Path) -> None:
    """Warm once, then twice the same again."""
    with mock_upstream(CORE, delay_ms=1, pace_ms=2) as upstream, our_gateway(CORE, [upstream], tmp_path) as gateway:
        rounds(gateway)
        warm = gateway.rss_mb
        rounds(gateway)
        rounds(gateway)

        assert gateway.rss_mb < MOST_MB
        assert gateway.rss_mb - warm < GROWTH_MB
