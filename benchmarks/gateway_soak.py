"""An hour of mixed load on one gateway: does anything of it stay in memory?

    make bench-gateway-soak [ARGS="--minutes 60"]

Every 20 s the same round: chats, 16 at a time; streams, read to their end; streams whose reader leaves halfway; callers
with a wrong key. Between rounds the gateway rests, and its memory is read then. The first half warms it up; growth is
the slope of a straight line through the second half. Nothing here leaves the loopback interface.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway_load import Task
from benchmarks.gateway_servers import REQUEST, Running, measure, mock_upstream, our_gateway
from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, lonely_row, write_results

GATEWAY_CORE, LOAD_CORE = 0, 1
ROUND_S = 20.0
REST_S = 2.0
"""After a round's last answer, before memory is read."""
STRANGER = {"authorization": "Bearer vc-000000000000-nobody"}
ENDS = ("answered", "streamed", "left", "refused")
WHEN = {
    "memory after the first round": "after the first round",
    "memory at half time": "at half time",
    "memory at the end": "at the end",
    "most memory": "at most",
}
LEAST_MINUTES = 2
NO_PEER = ("none", "a gateway's memory against its own")

Sample = tuple[float, float]
"""Hours since the start, MB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    if args.minutes < LEAST_MINUTES:
        parser.error(f"--minutes: at least {LEAST_MINUTES}, or there is no second half to speak of")
    with (
        tempfile.TemporaryDirectory(prefix="bench-soak-") as folder,
        mock_upstream(LOAD_CORE) as upstream,
        our_gateway(GATEWAY_CORE, [upstream], Path(folder)) as gateway,
    ):
        samples, done = soak(gateway, args.minutes * 60)
    if done["failed"]:
        raise SystemExit(f"{done['failed']} answers or streams failed, so this was no steady load: {dict(done)}")
    rows = make_rows(samples, done)
    write_results(RESULTS / "gateway_soak.json", rows, samples=samples)
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), "gateway-soak", sentence(rows)))
    print(sentence(rows))


def make_rows(samples: Sequence[Sample], done: Counter[str]) -> list[Row]:
    late = samples[len(samples) // 2 :]
    found = [
        ("length", "min", 60 * samples[-1][0]),
        *((name, "requests", done[name]) for name in ENDS),
        ("memory after the first round", "MB", samples[0][1]),
        ("memory at half time", "MB", late[0][1]),
        ("memory at the end", "MB", late[-1][1]),
        ("most memory", "MB", max(memory for _, memory in samples)),
        ("growth in the second half", "MB/h", slope(late)),
    ]
    return [lonely_row(name, unit, [value], *NO_PEER) for name, unit, value in found]


def sentence(rows: Sequence[Row]) -> str:
    value = {row["name"]: row["ours"] for row in rows}
    requests = ", ".join(f"{value[name]:,.0f} {name}" for name in ENDS)
    memory = ", ".join(f"{value[name]:.1f} MB {when}" for name, when in WHEN.items())
    growth = value["growth in the second half"]
    return f"{value['length']:.0f} minutes, {requests}: {memory}; {growth:+.2f} MB an hour in the second half."


def soak(gateway: Running, seconds: float) -> tuple[list[Sample], Counter[str]]:
    """Memory after each round, and how many requests ended how."""
    begun, samples, done = time.monotonic(), list[Sample](), Counter[str]()
    while (now := time.monotonic() - begun) < seconds:
        one_round(gateway, done)
        time.sleep(REST_S)
        samples.append(((time.monotonic() - begun) / 3600, gateway.rss_mb))
        print(f"{60 * samples[-1][0]:6.1f} min {samples[-1][1]:6.1f} MB {sum(done.values()):,} requests", flush=True)
        time.sleep(max(0.0, now + ROUND_S - (time.monotonic() - begun)))
    return samples, done


def one_round(gateway: Running, done: Counter[str]) -> None:
    whole = load(gateway, concurrency=16, seconds=3.0)
    done["answered"] += whole["answers"]
    done["failed"] += whole["failed"]
    streamed = load(gateway, streams=100)
    done["streamed"] += streamed["streams"] - streamed["broken"]
    done["failed"] += streamed["broken"] + streamed["lost_frames"]
    done["left"] += load(gateway, streams=50, ramp_s=0.1, timeout_s=0.7)["broken"]  # of 1.3 s
    done["refused"] += load(gateway, STRANGER, concurrency=4, seconds=0.3)["failed"]


def load(gateway: Running, headers: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    body = {**REQUEST, "stream": "streams" in options}
    return measure(Task(gateway.port, body, headers or dict(gateway.headers), warm_s=0.0, **options), LOAD_CORE)


def slope(samples: Sequence[Sample]) -> float:
    """MB an hour, by least squares."""
    return statistics.linear_regression(*zip(*samples, strict=True)).slope


if __name__ == "__main__":
    main()
