"""Clients that vanish, for minutes: does an Actor keep a place, a row or memory for any of them?

    make soak ARGS="--minutes 10"

Each round, `--clients` leave at random moments; a second later every place and row must be free. The last line is the
verdict: how many rounds left something behind, and how the process's memory went, under load and at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time

import httpx
import psutil

from benchmarks.actor_server import TOKEN, ActorProcess, actor_process
from tests.vanishing import vanish_all
from vcllm.engine.local import REST_AFTER_S

GAUGES = ("vc_answers_inside", "vc_engine_rows", "vc_engine_waiting", "vc_inflight")
FREE_WITHIN_S = 1.0
REPORT_EVERY_S = 15.0
REST_EVERY_S = 60.0
REST_S = REST_AFTER_S + 3
"""Long enough for the engine to give its cache back, so that what is left is what is kept for good."""
CACHE_GIB = 0.25
"""An eighth of it keeps beginnings of prompts: little enough to be full soon, so that it does not look like a leak."""


def settle_s(server: ActorProcess) -> float | None:
    """Seconds until nothing is left behind; None: something still is after ten."""
    begun = time.perf_counter()
    while time.perf_counter() < begun + 10:
        asked = time.perf_counter()
        if not any(server.metric(gauge) for gauge in GAUGES):
            return asked - begun
        time.sleep(0.02)
    return None


def answered(server: ActorProcess) -> bool:
    body = {"model": "v1", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=server.headers, timeout=30)
    return reply.status_code == 200


def soak(server: ActorProcess, minutes: float, clients: int) -> dict[str, object]:
    chance, process = random.Random(0), psutil.Process(server.process.pid)
    begun = reported = time.monotonic()
    settled: list[float] = []
    memory: list[tuple[float, float]] = []
    at_rest: list[tuple[float, float]] = []
    rested = begun

    def resident() -> tuple[float, float]:
        return round(time.monotonic() - begun), round(process.memory_info().rss / 2**20, 1)

    leaks = late = unanswered = 0
    while time.monotonic() < begun + 60 * minutes:
        asyncio.run(vanish_all(server.port, TOKEN, clients, chance))
        took = settle_s(server)
        leaks += took is None
        late += took is not None and took > FREE_WITHIN_S
        settled += [took] if took is not None else []
        unanswered += not answered(server)
        if time.monotonic() >= reported:
            reported = time.monotonic() + REPORT_EVERY_S
            memory.append(resident())
            print(json.dumps({"s": memory[-1][0], "rss_mib": memory[-1][1], "rounds": len(settled)}), flush=True)
        if time.monotonic() >= rested + REST_EVERY_S:
            time.sleep(REST_S)
            at_rest.append(resident())
            rested = time.monotonic()
    settled.sort()
    return {
        "rounds": len(settled) + leaks,
        "clients": clients * (len(settled) + leaks),
        "leaks": leaks,
        "late": late,
        "unanswered": unanswered,
        "free_s_p50": round(settled[len(settled) // 2], 3) if settled else None,
        "free_s_max": round(settled[-1], 3) if settled else None,
        "rss_mib": memory,
        "rss_mib_at_rest": at_rest,
        "cancelled": server.metric("vc_cancelled_total"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args()
    with actor_process(max_rows=64, cache_gib=CACHE_GIB) as server:
        print(json.dumps(soak(server, options.minutes, options.clients)))


if __name__ == "__main__":
    main()
