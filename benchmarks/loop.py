"""The adversarial loop against its baselines, and three experiments with a planted answer; see docs/loop-benchmark.md.

    make bench-loop                                   # five seeds, every arm, two runs at a time
    make bench-loop ARGS="--seeds 0,1 --only arms"    # of what is there, the tables are made again

A run that is there is not made again, so an interrupted benchmark carries on. Writes `benchmarks/results/loop.json` and
the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.loop_arms import ARMS, BASELINES, TRL
from benchmarks.loop_figures import CLAIMED, MEASURES, Figure, claim_holds, figure, standing
from benchmarks.loop_runs import HOME, RESULT
from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, lonely_row, paired_row, write_results

Result = dict[str, Any]
SPOTS = ("spot-0", "spot-1")
PLANTED = (*SPOTS, "bad-critic", "honest-critic", "diverse", "alike")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated; default: 0,1,2,3,4")
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time, one thread each; default: 2")
    parser.add_argument(
        "--only", choices=["arms", "planted", "tables"], help="leave the others out; tables: run nothing"
    )
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.only != "tables":
        run_all(seeds, options.lanes, options.only)
    arms = {name: results(name, seeds) for name in ("ours", *BASELINES)}
    rows = [*arm_rows(arms), *planted_rows(seeds)]
    write_results(RESULTS / "loop.json", rows, seeds=seeds)
    document = DOCUMENT.read_text(encoding="utf-8")
    document = fill(document, "loop", arms_table(arms))
    document = fill(document, "loop-planted", planted_table(seeds))
    DOCUMENT.write_text(document, encoding="utf-8")
    return 0


def run_all(seeds: Sequence[int], lanes: int, only: str | None) -> None:
    """Every run in a process of its own: starts first, then what begins from them."""
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda seed: run("loop_runs", "start", seed), seeds))
        jobs = [("loop_runs", arm, seed) for seed in seeds for arm in ("ours", *BASELINES) if only != "planted"]
        jobs += [("loop_checks", check, seed) for seed in seeds for check in PLANTED if only != "arms"]
        list(pool.map(lambda job: run(*job), jobs))


def run(module: str, name: str, seed: int) -> None:
    folder = HOME / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}: {name}", flush=True)
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", name, str(seed)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=True,
        )


def results(name: str, seeds: Sequence[int]) -> list[Result]:
    """Of the seeds that have it."""
    files = [HOME / f"seed-{seed}" / name / RESULT for seed in seeds]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def figures(runs: Sequence[Result]) -> dict[str, Figure]:
    chance = np.random.default_rng(0)
    return {name: figure(score, runs, chance) for name, (score, _) in MEASURES.items()}


def arm_rows(arms: dict[str, list[Result]]) -> list[Row]:
    """Ours and each baseline, with both intervals; a baseline that was not run says so."""
    rows, ours = [], arms["ours"]
    if not ours:
        return rows
    mine = figures(ours)
    for arm in BASELINES:
        theirs = arms[arm]
        if not theirs:
            rows += [lonely_row(name, "share", [mine[name].value], arm, "not run") for name in MEASURES]
            continue
        other = figures(theirs)
        where = standing(mine, other)
        rows += [figure_row(name, arm, mine[name], other[name], where[name]) for name in MEASURES]
        num = min(len(ours), len(theirs))
        paces = [[pace_of(one) for one in runs[:num]] for runs in (ours, theirs)]
        rows.append(paired_row("approved pairs a minute", "1/min", *paces, arm))
    return rows


def figure_row(name: str, arm: str, mine: Figure, other: Figure, apart: str) -> Row:
    """Means over the seeds; no ratio where one of them is nought."""
    num, less = min(mine.num_seeds, other.num_seeds), MEASURES[name][1] == "less"
    better, worse = (other.value, mine.value) if less else (mine.value, other.value)
    ratio = round(better / worse, 3) if better and worse else None
    return {
        "name": name,
        "unit": "share",
        "ours": round(mine.value, 5),
        "peer": round(other.value, 5),
        "peer_name": arm,
        "ratio": ratio,
        "runs": num,
        "ratio_min": ratio,
        "ratio_max": ratio,
        "ours_interval": [round(mine.low, 5), round(mine.high, 5)],
        "peer_interval": [round(other.low, 5), round(other.high, 5)],
        "apart": apart,
    }


def pairs_of(result: Result) -> int:
    """Approved in all rounds."""
    if "trl" in result:
        return int(result["trl"]["approved"])
    return sum(stage["round"]["num_pairs"] or 0 for stage in result["stages"] if stage.get("round"))


def seconds_of(result: Result) -> float:
    """Of attacking, answering, judging and training; the judge's measurements are nobody's throughput."""
    if "trl" in result:
        return float(result["attack_seconds"] + result["trl"]["seconds"])
    works = [stage["round"]["work"]["seconds"] for stage in result["stages"] if stage.get("round")]
    return sum(value for work in works for phase, value in work.items() if phase not in ("gate", "measure"))


def pace_of(result: Result) -> float:
    """Approved pairs a minute."""
    return 60 * pairs_of(result) / seconds_of(result)


def coverage_of(result: Result) -> float | None:
    last = result["stages"][-1].get("round")
    return None if not last else last["coverage"]


def arms_table(arms: dict[str, list[Result]]) -> str:
    """Markdown: an arm a line; bold where it is apart from ours, with who is better."""
    lines = [
        "| arm | "
        + " | ".join(f"{name}, %" for name in MEASURES)
        + " | coverage | s | pairs/min | against ours | seeds |",
        "|---|" + "--:|" * (len(MEASURES) + 3) + "---|--:|",
    ]
    mine = figures(arms["ours"]) if arms["ours"] else None
    for name in ("ours", *BASELINES):
        runs = arms[name]
        title = TRL if name == "trl" else ARMS[name].title
        if not runs or mine is None:
            lines.append(f"| {title} |" + " – |" * (len(MEASURES) + 3) + " not run | 0 |")
            continue
        found = figures(runs)
        where = standing(mine, found) if name != "ours" else {}
        cells = [f"**{found[one]}**" if where.get(one, "same") != "same" else str(found[one]) for one in MEASURES]
        covered = [value for one in runs if (value := coverage_of(one)) is not None]
        seconds = statistics.median(map(seconds_of, runs))
        pace = statistics.median(map(pace_of, runs))
        cells += [f"{100 * statistics.mean(covered):.0f} %" if covered else "–", f"{seconds:.0f}", f"{pace:.0f}"]
        verdict = "" if name == "ours" else told(where)
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {verdict} | {len(runs)} |")
    return "\n".join(lines)


def told(where: dict[str, str]) -> str:
    better = [name for name in CLAIMED if where[name] == "ours"]
    worse = [name for name in CLAIMED if where[name] == "theirs"]
    parts = [f"ours is better in {' and '.join(better)}"] if better else []
    parts += [f"**it is better in {' and '.join(worse)}**"] if worse else []
    return "; ".join(parts) + (
        "" if claim_holds(where) else " (claim not met)" if parts else "not apart (claim not met)"
    )


def planted_rows(seeds: Sequence[int]) -> list[Row]:
    rows = []
    spots = [one for name in SPOTS for one in results(name, seeds)]
    if spots:
        rows.append(
            lonely_row(
                "weak spot found by round 2",
                "share",
                [statistics.mean(map(found_in_time, spots))],
                "planted",
                "an experiment",
            )
        )
        rows.append(
            lonely_row(
                "weak spot gone at the end", "share", [statistics.mean(map(is_gone, spots))], "planted", "an experiment"
            )
        )
    critics = results("bad-critic", seeds)
    if critics:
        rows.append(
            lonely_row(
                "bad Critic caught", "share", [statistics.mean(map(is_caught, critics))], "planted", "an experiment"
            )
        )
    for name in ("diverse", "alike"):
        if runs := results(name, seeds):
            last = [one["rounds"][-1]["archive"] for one in runs]
            rows.append(
                lonely_row(f"coverage, {name}", "share", [one["coverage"] for one in last], "planted", "an experiment")
            )
            rows.append(
                lonely_row(f"evenness, {name}", "1", [one["evenness"] for one in last], "planted", "an experiment")
            )
    return rows


def found_in_time(result: Result) -> bool:
    return result["found_in_round"] is not None and result["found_in_round"] <= 2


def is_gone(result: Result) -> bool:
    return result["violating"][-1] <= 0.1


def is_caught(result: Result) -> bool:
    """Something that its word has trained is held to be worse than its parent, and nothing is promoted after that."""
    first = next((i for i, names in enumerate(result["worse"]) if names), None)
    return first is not None and "promote" not in result["decisions"][first:]


def planted_table(seeds: Sequence[int]) -> str:
    lines = ["| experiment | seed | what came of it |", "|---|--:|---|"]
    for seed in seeds:
        for name in SPOTS:
            for one in results(name, [seed]):
                course = " → ".join(f"{100 * share:.0f} %" for share in one["violating"])
                when = f"found in round {one['found_in_round']}" if one["found_in_round"] else "not found"
                lines.append(f"| weak spot `{one['cell']}` | {seed} | {when}; violating there: {course} |")
        for name in ("bad-critic", "honest-critic"):
            for one in results(name, [seed]):
                course = " → ".join(f"{100 * share:.0f} %" for share in one["attack_success"])
                worse = "; ".join(", ".join(names) or "nothing" for names in one["worse"])
                what = f"worse than its parent, by round: {worse}; attack success: {course}"
                lines.append(f"| {name.replace('-', ' ')} | {seed} | {what} |")
        for name in ("diverse", "alike"):
            for one in results(name, [seed]):
                last = one["rounds"][-1]["archive"]
                likeness = {key: value["self_similarity"] for key, value in last["diversity"].items()}
                alike = ", ".join(f"{key} {value:.2f}" for key, value in likeness.items())
                covered = f"coverage {100 * last['coverage']:.0f} %, evenness {last['evenness']:.2f}"
                score = f"QD-score {last['qd_score']:.0f}, similarity {alike}"
                lines.append(f"| diversity {'on' if name == 'diverse' else 'off'} | {seed} | {covered}, {score} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
