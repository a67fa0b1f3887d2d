"""The demo's figures over several seeds: mean and range, each seed a whole run through the real services.

    make bench-starter                       # seeds 0 to 4
    make bench-starter ARGS="--seeds 0,1"

Every seed has its own home below `var/bench/`, so an interrupted benchmark carries on. Writes
`benchmarks/results/starter.json` and prints the table of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Stage = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "starter.json"
FIGURES: list[tuple[str, Callable[[Stage], dict[str, Any]]]] = [
    ("attack success, seen tactics", lambda stage: stage["attack_success"]["seen"]["mean"]),
    ("attack success, held-out tactics", lambda stage: stage["attack_success"]["held_out"]["mean"]),
    (
        "attack success, held-out tactics and cards",
        lambda stage: stage["attack_success"]["held_out_cards"]["mean"],
    ),
    ("keeps to the charter, held-out tactics", lambda stage: stage["consistent"]["held_out"]["mean"]),
    (
        "keeps to the charter, held-out tactics and cards",
        lambda stage: stage["consistent"]["held_out_cards"]["mean"],
    ),
    ("zh and en both keep to the charter", lambda stage: stage["both_consistent"]),
    ("harmless questions answered", lambda stage: stage["benign_helpful"]),
    ("over-refusal", lambda stage: stage["over_refusal"]),
    ("broken answers", lambda stage: stage["broken"]),
]
STAGES = ["base", "base_prompted", "cpt", "sft", "round-1", "round-2", "round-3", "control"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated; default: 0,1,2,3,4")
    parser.add_argument("--home", type=Path, default=Path("var/bench"), help="where the runs are kept")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    reports = {seed: run(seed, options.home / f"seed-{seed}") for seed in seeds}
    rows = summarise(reports)
    RESULTS.parent.mkdir(exist_ok=True)
    first = reports[seeds[0]]
    RESULTS.write_text(
        json.dumps(
            {
                "machine": first["machine"],
                "processor": processor(),
                "commit": first["commit"],
                "date": datetime.now(UTC).date().isoformat(),
                "seeds": seeds,
                "seconds": [round(report["seconds"]) for report in reports.values()],
                "software": first["software"],
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )
    print(table(rows, len(seeds)))
    return 0


def run(seed: int, home: Path) -> dict[str, Any]:
    """The report of one seed, made now unless it is there."""
    file = home / "report" / "report.json"
    if not file.is_file():
        print(f"seed {seed}: running; its log is {home}/bench.log", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        with (home / "bench.log").open("a") as log:
            subprocess.run(
                [sys.executable, "-m", "vcllm.cli", "demo", "--exit", "--seed", str(seed)],
                env={**os.environ, "VCLLM_HOME": str(home.resolve())},
                stdout=log,
                stderr=log,
                check=True,
            )
    return json.loads(file.read_text())


def summarise(reports: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per stage and figure: the values by seed, their mean and range."""
    rows = []
    for stage in STAGES:
        for name, figure in FIGURES:
            values = [figure(found)["value"] for report in reports.values() if (found := named(report, stage))]
            if values:
                mean = sum(values) / len(values)
                rows.append(
                    {"stage": stage, "figure": name, "mean": round(mean, 4), "low": min(values), "high": max(values),
                     "by_seed": values}
                )  # fmt: skip
    return rows


def named(report: dict[str, Any], stage: str) -> Stage | None:
    return next((one for one in report["stages"] if one["name"] == stage), None)


def table(rows: list[dict[str, Any]], num_seeds: int) -> str:
    """Markdown: figures down, stages across, mean with range in percent."""
    shown = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    lines = [
        f"| % (mean of {num_seeds} seeds, range) | " + " | ".join(shown) + " |",
        "|---|" + "---|" * len(shown),
    ]
    for name, _ in FIGURES:
        cells = []
        for stage in shown:
            row = next(row for row in rows if row["stage"] == stage and row["figure"] == name)
            cells.append(f"{100 * row['mean']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
