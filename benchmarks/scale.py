"""How answers a second grow with the replicas of a role, behind one gateway on one core.

    python -m benchmarks.scale [--replicas 1,2,4,8,16,32,64] [--seconds 5] [--runs 3]

A replica is bound by its device: it sleeps `--token-ms` for each of 64 tokens and works on `--slots` answers at once,
so that 64 of them fit on the core they share with the load. Each size is asked by twice as many clients as there are
slots. Growth is held against what so many replicas can answer, up to the gateway's own limit, which is measured beside
with an upstream that answers at once.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gateway_load import Task
from benchmarks.gateway_servers import REQUEST, measure, mock_replicas, our_gateway
from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, write_results

GATEWAY_CORE, LOAD_CORE = 0, 1
TOKENS = 64
LIMIT_CLIENTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", default="1,2,4,8,16,32,64")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--token-ms", type=float, default=2.0)
    args = parser.parse_args()
    sizes = [int(size) for size in args.replicas.split(",")]
    delay_ms = TOKENS * args.token_ms
    limit = [rate(1, 0, 0.0, LIMIT_CLIENTS, args.seconds)["per_s"] for _ in range(args.runs)]
    print(f"The gateway's own limit: {statistics.median(limit):.0f} answers a second", flush=True)
    rows = []
    for size in sizes:
        clients = 2 * size * args.slots
        found = [rate(size, args.slots, delay_ms, clients, args.seconds) for _ in range(args.runs)]
        ideal = size * args.slots * 1000 / delay_ms
        rows.append(row(size, [one["per_s"] for one in found], ideal, statistics.median(limit)))
        failed = sum(one["failed"] for one in found)
        print(
            f"{size} replicas: {rows[-1]['ours']} a second, {rows[-1]['ratio']} of ideal, {failed} failed", flush=True
        )
        if failed:
            raise SystemExit("Answers that fail are quick: there is no figure.")
    written = write_results(RESULTS / "scale.json", rows, limit_per_s=round(statistics.median(limit)))
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), "scale", table(written)))


def rate(replicas: int, slots: int, delay_ms: float, clients: int, seconds: float) -> dict[str, Any]:
    """Answers a second, and how many failed."""
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        with (
            mock_replicas(LOAD_CORE, replicas, slots=slots, delay_ms=delay_ms) as ports,
            our_gateway(GATEWAY_CORE, ports, folder) as gateway,
        ):
            task = Task(gateway.port, REQUEST, dict(gateway.headers), concurrency=clients, seconds=seconds)
            return measure(task, LOAD_CORE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row(replicas: int, per_s: list[float], ideal: float, limit: float) -> Row:
    """ideal: what the replicas could answer; the gateway's limit caps it."""
    reachable = min(ideal, limit)
    ratios = [one / reachable for one in per_s]
    return {
        "name": f"{replicas} replicas",
        "unit": "1/s",
        "ours": round(statistics.median(per_s), 1),
        "peer": round(reachable, 1),
        "peer_name": "what their devices allow, up to the gateway's limit",
        "ratio": round(statistics.median(ratios), 3),
        "runs": len(per_s),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def table(written: dict[str, Any]) -> str:
    lines = ["| replicas | answers a second | could be | share (range) | runs |", "|--:|--:|--:|--:|--:|"]
    for one in written["rows"]:
        share = f"**{one['ratio']:.2f}** ({one['ratio_min']:.2f}–{one['ratio_max']:.2f})"
        lines.append(f"| {one['name'].split()[0]} | {one['ours']:,} | {one['peer']:,} | {share} | {one['runs']} |")
    return "\n".join([*lines, "", f"The gateway's own limit on this core: {written['limit_per_s']:,} a second."])


if __name__ == "__main__":
    main()
