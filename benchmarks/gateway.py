"""The gateway beside LiteLLM's proxy, in the same shape and on the same work, in turns.

    python -m benchmarks.gateway [--pairs 5] [--only latency,rate,streams,memory] [--load-s 60]

Each gateway has one core, mock upstream and load share another. What a gateway adds is its latency less that of asking
the mock directly in the same round. Nothing here leaves the loopback interface, and each measurement has its end.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway_load import Task
from benchmarks.gateway_servers import (
    LITELLM,
    REQUEST,
    Running,
    litellm_proxy,
    measure,
    mock_upstream,
    our_gateway,
    paused,
)
from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, lonely_row, paired_row, table, write_results

OURS, PEER = 0, 1
GATEWAY_CORE, LOAD_CORE = 0, 1
LATENCY_AT = (1, 16)
RATE_AT = (16, 64)
STREAMS_AT = (25, 50, 100, 200, 300, 400, 500, 600)
LATE_MS = 100
"""Of gaps between frames that the upstream sends every 20 ms: whoever sees them at 99 of 100 has fallen behind."""
PARTS = ("latency", "rate", "streams", "memory")
GAP = "their longest gap but 1 %"
PEER_NAME = "LiteLLM proxy"
MISSING = "LiteLLM is not installed: make .venv-litellm/.made"

Figures = dict[str, dict[int, list[float]]]
"""By row name and side."""


@dataclass(frozen=True)
class Sides:
    """The gateways that run; only one of them at a time does anything."""

    running: dict[int, Running]
    upstream: int

    @contextmanager
    def turn(self, side: int) -> Iterator[Running]:
        others = [server for number, server in self.running.items() if number != side]
        with ExitStack() as stack:
            for server in others:
                stack.enter_context(paused(server))
            yield self.running[side]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="Of one closed loop.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"Some of {', '.join(PARTS)}.")
    parser.add_argument("--load-s", type=float, default=60.0, help="Of steady load after which memory is looked at.")
    args = parser.parse_args()
    parts = args.only.split(",")
    figures: Figures = defaultdict(lambda: defaultdict(list))
    folder = Path(tempfile.mkdtemp(prefix="bench-gateway-"))
    try:
        with ExitStack() as stack:
            upstream = stack.enter_context(mock_upstream(LOAD_CORE))
            running = {OURS: stack.enter_context(our_gateway(GATEWAY_CORE, [upstream], folder / "ours"))}
            if LITELLM.exists():
                running[PEER] = stack.enter_context(litellm_proxy(GATEWAY_CORE, upstream, folder))
            sides = Sides(running, upstream)
            if "memory" in parts:
                note_start(sides, figures)
            for _ in range(args.pairs):
                if "latency" in parts:
                    latency(sides, figures, args.seconds)
                if "rate" in parts:
                    rate(sides, figures, args.seconds)
            if "streams" in parts:
                streams(sides, figures, args.pairs)
            if "memory" in parts:
                memory_after_load(sides, figures, args.load_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [row for name, by_side in figures.items() for row in make_row(name, by_side)]
    print(table(rows))
    written = write_results(RESULTS / "gateway.json", rows)
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), "gateway", table(written["rows"])))


def latency(sides: Sides, figures: Figures, seconds: float) -> None:
    """Added p50 and p99."""
    for concurrency in LATENCY_AT:
        task = Task(sides.upstream, REQUEST, concurrency=concurrency, seconds=seconds)
        direct = measure(task, LOAD_CORE)
        for side in sides.running:
            found = ask(sides, side, concurrency, seconds)
            for quantile in ("p50", "p99"):
                added = found[f"{quantile}_ms"] - direct[f"{quantile}_ms"]
                note(figures, f"added {quantile} at {concurrency}, ms", side, added)


def rate(sides: Sides, figures: Figures, seconds: float) -> None:
    """Answers a second of one core; a failed answer is none."""
    for concurrency in RATE_AT:
        for side in sides.running:
            found = ask(sides, side, concurrency, seconds)
            note(figures, f"answers at {concurrency}, 1/s", side, found["per_s"])
            if found["failed"]:
                print(f"{sides.running[side].name} failed {found['failed']} times at {concurrency}")
            if found["failed"] and side == OURS:
                raise SystemExit("Answers that fail are quick: there is no figure.")


def streams(sides: Sides, figures: Figures, pairs: int) -> None:
    """The most paced streams at once of which no frame is lost or late: frames keep the pace of the upstream."""
    for _ in range(pairs):
        for side in sides.running:
            held, gap_ms = 0, 0.0
            for number in STREAMS_AT:
                task = Task(sides.running[side].port, {**REQUEST, "stream": True}, streams=number)
                with sides.turn(side) as server:
                    found = measure(with_key(task, server), LOAD_CORE)
                print(f"{server.name} {found}", flush=True)
                if found["broken"] or found["lost_frames"] or found["gap_p99_ms"] > LATE_MS:
                    break
                held, gap_ms = number, found["gap_p99_ms"]
            note(figures, "paced streams held, streams", side, held)
            note(figures, f"{GAP}, ms", side, gap_ms)


def note_start(sides: Sides, figures: Figures) -> None:
    for side, server in sides.running.items():
        note(figures, "cold start, s", side, server.cold_start_s)
        note(figures, "memory when idle, MB", side, server.rss_mb)


def memory_after_load(sides: Sides, figures: Figures, seconds: float) -> None:
    """Memory after steady load, and by how much it has grown in the second half of it."""
    for side in sides.running:
        ask(sides, side, 16, seconds / 2)
        half = sides.running[side].rss_mb
        ask(sides, side, 16, seconds / 2)
        end = sides.running[side].rss_mb
        note(figures, "memory after load, MB", side, end)
        print(
            f"{sides.running[side].name}: {half:.1f} MB after {seconds / 2:.0f} s, {end:.1f} MB after {seconds:.0f} s"
        )
        time.sleep(1)


def ask(sides: Sides, side: int, concurrency: int, seconds: float) -> dict[str, float]:
    with sides.turn(side) as server:
        task = Task(server.port, REQUEST, concurrency=concurrency, seconds=seconds)
        return measure(with_key(task, server), LOAD_CORE)


def with_key(task: Task, server: Running) -> Task:
    return Task(**{**vars(task), "headers": dict(server.headers)})


def note(figures: Figures, name: str, side: int, value: float) -> None:
    figures[name][side].append(value)
    print(f"{name}: {('ours', 'LiteLLM')[side]} {value:.2f}", flush=True)


def make_row(name: str, by_side: dict[int, list[float]]) -> Iterator[Row]:
    name, _, unit = name.rpartition(", ")
    if PEER not in by_side:
        yield lonely_row(name, unit, by_side[OURS], PEER_NAME, MISSING)
    elif name == GAP:
        yield lonely_row(name, unit, by_side[OURS], PEER_NAME, "holds another number of streams")
    elif unit == "streams":  # none held counts as one, or there would be no ratio
        yield paired_row(name, unit, by_side[OURS], [max(1, held) for held in by_side[PEER]], PEER_NAME)
    elif min(by_side[OURS] + by_side[PEER]) <= 0:  # a ratio of noise says nothing
        yield lonely_row(name, unit, by_side[OURS], PEER_NAME, "a side added nothing that could be measured")
    else:
        more = unit in ("1/s", "streams")
        yield paired_row(name, unit, by_side[OURS], by_side[PEER], PEER_NAME, "more" if more else "less")


if __name__ == "__main__":
    main()
