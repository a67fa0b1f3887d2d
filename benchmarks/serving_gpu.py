"""The engine on a GPU beside transformers' continuous batching: random models of 0.5B and 7B shape, bfloat16, no HTTP.

Each model is a run of `benchmarks.engine` of its own. With one answer in flight a token costs one reading of all
weights, so tokens a second are shown as a share of what the memory's bandwidth allows, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from transformers import __version__

from benchmarks.rows import RESULTS, Row, gpu, lonely_row, paired_row, table, write_results
from benchmarks.serving_servers import ROOT

MODELS = ("0.5b", "7b")
CONCURRENCIES = (1, 32, 128)
PROMPT_TOKENS, NEW_TOKENS = 256, 128
QUICK_MODELS, QUICK_RUNS = ("0.5b",), 1
BYTES_PER_WEIGHT = 2
PEAK_BYTES_PER_S = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12}
"""Of SXM boards; A100 with 80 GB."""


def main(options: argparse.Namespace) -> int:
    """Writes `benchmarks/results/serving_gpu.json`; quick runs only print."""
    device = gpu()
    if device is None:
        raise SystemExit("--gpu needs a CUDA device; nvidia-smi finds none.")
    rows: list[Row] = []
    for model in QUICK_MODELS if options.quick else MODELS:
        for found in measure(model, QUICK_RUNS if options.quick else options.pairs):
            rows += rows_of(found, device)
        print(table(rows), flush=True)
        if not options.quick:
            write_results(RESULTS / "serving_gpu.json", rows)
    return 0


def measure(model: str, runs: int) -> list[dict[str, Any]]:
    """A line of `benchmarks.engine` for each number in flight."""
    told = {
        "model": model,
        "device": "cuda",
        "dtype": "bfloat16",
        "num-requests": ",".join(map(str, CONCURRENCIES)),
        "prompt-tokens": str(PROMPT_TOKENS),
        "new-tokens": str(NEW_TOKENS),
        "runs": str(runs),
        "sides": "ours,batching",
    }
    flags = [word for name, value in told.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "benchmarks.engine", *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def rows_of(found: dict[str, Any], device: str) -> list[Row]:
    name, peer = (
        f"{found['model'].upper()}, {found['requests']} at once",
        f"transformers {__version__} continuous batching",
    )
    ours, theirs = found["ours_all"], found["batching_all"]
    rows = [paired_row(f"{name}: throughput", "tokens/s", ours, theirs, peer)]
    peak = next((rate for board, rate in PEAK_BYTES_PER_S.items() if board in device), None)
    if found["requests"] == 1 and peak is not None:
        share = [100 * rate * found["weights_read"] * BYTES_PER_WEIGHT / peak for rate in ours]
        rows.append(lonely_row(f"{name}: share of the bandwidth limit", "%", share, "the limit", "100 % by definition"))
    return rows
