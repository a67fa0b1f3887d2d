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
from benchmarks.loop_figures import CLAIMED, MEASURES, Figure, claim_holds, difference, figure, standing
from benchmarks.loop_pace import (
    NUM_PACED,
    PACED,
    PACED_ARMS,
    PACED_THREADS,
    pace_of,
    pace_rows,
    pace_table,
    seconds_of,
)
from benchmarks.loop_runs import HOME, RESULT
from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, lonely_row, write_results

Result = dict[str, Any]
SPOTS = ("spot-0", "spot-1")
GONE = 0.1
"""Share of violating answers in a planted cell up to which it is weak no more."""
OTHERS, NUM_OTHERS = ("bad-critic", "honest-critic", "diverse", "alike"), 3
"""The other planted experiments, and of how many seeds they are."""


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
    paced = {arm: results(PACED + arm, seeds) for arm in PACED_ARMS}
    rows = [*arm_rows(arms), *pace_rows(paced), *planted_rows(seeds)]
    write_results(RESULTS / "loop.json", rows, seeds=seeds)
    document = DOCUMENT.read_text(encoding="utf-8")
    document = fill(document, "loop", arms_table(arms))
    document = fill(document, "loop-differences", differences_table(arms))
    document = fill(document, "loop-pace", pace_table(paced))
    document = fill(document, "loop-planted", planted_table(seeds))
    DOCUMENT.write_text(document, encoding="utf-8")
    return 0


def run_all(seeds: Sequence[int], lanes: int, only: str | None) -> None:
    """Every run in a process of its own: starts first, then what begins from them."""
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda seed: run("loop_runs", "start", seed), seeds))
        jobs = [("loop_runs", arm, seed) for seed in seeds for arm in ("ours", *BASELINES) if only != "planted"]
        if only != "arms":
            jobs += [("loop_checks", spot, seed) for seed in seeds for spot in SPOTS]
            jobs += [("loop_checks", check, seed) for seed in seeds[:NUM_OTHERS] for check in OTHERS]
        list(pool.map(lambda job: run(*job), jobs))
    if only != "planted":
        for seed in seeds[:NUM_PACED]:
            for arm in PACED_ARMS:
                run("loop_runs", PACED + arm, seed, threads=PACED_THREADS)


def run(module: str, name: str, seed: int, *, threads: int = 1) -> None:
    folder = HOME / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}: {name}", flush=True)
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", name, str(seed)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
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


def differences(ours: Sequence[Result], theirs: Sequence[Result]) -> dict[str, Figure]:
    """Theirs less ours, over the seeds that both have."""
    mine = {one["seed"]: one for one in ours}
    both = [(mine[one["seed"]], one) for one in theirs if one["seed"] in mine]
    chance = np.random.default_rng(0)
    return {
        name: difference(score, [one for one, _ in both], [one for _, one in both], chance)
        for name, (score, _) in MEASURES.items()
    }


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
        where, less = standing(mine, other), differences(ours, theirs)
        rows += [
            figure_row(name, arm, mine[name], other[name], where[name])
            | {"difference": [round(value, 5) for value in (less[name].value, less[name].low, less[name].high)]}
            for name in MEASURES
        ]
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


def differences_table(arms: dict[str, list[Result]]) -> str:
    """Markdown: what each baseline has above ours, in points; bold where the interval leaves out nought."""
    lines = ["| arm | " + " | ".join(f"{name}, points" for name in MEASURES) + " |", "|---|" + "--:|" * len(MEASURES)]
    for name in BASELINES:
        if arms[name] and arms["ours"]:
            found = differences(arms["ours"], arms[name])
            lines.append(
                f"| {TRL if name == 'trl' else ARMS[name].title} | " + " | ".join(map(points, found.values())) + " |"
            )
    return "\n".join(lines)


def points(less: Figure) -> str:
    text = f"{100 * less.value:+.1f} ({100 * less.low:+.1f} to {100 * less.high:+.1f})"
    return f"**{text}**" if less.low > 0 or less.high < 0 else text


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
    if spots := [one for name in SPOTS for one in results(name, seeds)]:
        rows += [
            planted_row("weak spot found by round 2", "share", [statistics.mean(map(found_in_time, spots))]),
            planted_row(
                "weak spot found, and gone after the next training", "share", [statistics.mean(map(is_gone, spots))]
            ),
            planted_row(
                "weak spot gone at the end", "share", [statistics.mean(one["violating"][-1] <= GONE for one in spots)]
            ),
        ]
    if critics := results("bad-critic", seeds):
        rows.append(planted_row("bad Critic caught", "share", [statistics.mean(map(is_caught, critics))]))
    if critics := results("honest-critic", seeds):
        rows.append(
            planted_row("honest Critic caught", "share", [statistics.mean(any(one["worse"]) for one in critics)])
        )
    for name in ("diverse", "alike"):
        if runs := results(name, seeds):
            last = [one["rounds"][-1]["archive"] for one in runs]
            rows += [
                planted_row(f"{what}, {name}", unit, [one[what] for one in last])
                for what, unit in (("coverage", "share"), ("evenness", "1"))
            ]
    return rows


def planted_row(name: str, unit: str, values: Sequence[float]) -> Row:
    return lonely_row(name, unit, values, "planted", "an experiment")


def found_in_time(result: Result) -> bool:
    return result["found_in_round"] is not None and result["found_in_round"] <= 2


def is_gone(result: Result) -> bool:
    """After the training of the round that could aim at it, the one after it was found; it had to be found in time."""
    return found_in_time(result) and result["violating"][result["found_in_round"] + 1] <= GONE


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
