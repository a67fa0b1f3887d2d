"""Approved pairs a minute: of the rounds of an arm, and of TRL's course, each with where the time went.

Knows results of runs, not how they were made.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.loop_arms import ARMS, TRL
from benchmarks.rows import Row, lonely_row, paired_row
from services.trainer.summing import WORKED

Result = dict[str, Any]
PACED = "paced-"
"""Before the names of runs that are made for this alone: nothing beside them, on two threads."""
PACED_ARMS, NUM_PACED, PACED_THREADS = ("ours", "trl"), 2, 2
WORK = tuple(phase for phases in WORKED.values() for phase in phases)
"""Attacking, answering, judging and training; the judge's measurements are nobody's throughput."""


def pairs_of(result: Result) -> int:
    """Approved in all rounds."""
    if "trl" in result:
        return int(result["trl"]["approved"])
    return sum(stage["round"]["num_pairs"] or 0 for stage in result["stages"] if stage.get("round"))


def seconds_of(result: Result, phases: Sequence[str] = WORK) -> float:
    """Of these phases in all rounds; TRL's course has none, and is taken whole."""
    if "trl" in result:
        return float(result["attack_seconds"] + result["trl"]["seconds"])
    works = [stage["round"]["work"]["seconds"] for stage in result["stages"] if stage.get("round")]
    return sum(work.get(phase, 0.0) for work in works for phase in phases)


def pace_of(result: Result) -> float:
    """Approved pairs a minute."""
    return 60 * pairs_of(result) / seconds_of(result)


def spent_by(result: Result) -> dict[str, float]:
    """Seconds of work by role; TRL answers and trains in one loop."""
    if "trl" not in result:
        return {role: seconds_of(result, phases) for role, phases in WORKED.items()}
    made = result["trl"]
    return {
        "attacker": result["attack_seconds"],
        "answers and training": made["seconds"] - made["critic_seconds"],
        "critic": made["critic_seconds"],
    }


def pace_rows(paced: Mapping[str, Sequence[Result]]) -> list[Row]:
    """Ours beside TRL's, over the seeds that both have, and by the work of each of our roles. paced: runs by arm."""
    by_seed = {one["seed"]: one for one in paced["trl"]}
    ours = [one for one in paced["ours"] if one["seed"] in by_seed]
    theirs = [by_seed[one["seed"]] for one in ours]
    if not ours:
        return []
    rows = [paired_row("approved pairs a minute", "1/min", [*map(pace_of, ours)], [*map(pace_of, theirs)], "trl")]
    for role, phases in WORKED.items():
        paces = [60 * pairs_of(one) / seconds_of(one, phases) for one in ours]
        rows.append(lonely_row(f"approved pairs a minute of the {role}'s work", "1/min", paces, "trl", "has no roles"))
    return rows


def pace_table(paced: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: medians over the runs."""
    lines = ["| | pairs/min | approved pairs | s | of which, s |", "|---|--:|--:|--:|---|"]
    for arm, runs in paced.items():
        if runs:
            pace, pairs, seconds = (_median(runs, of) for of in (pace_of, pairs_of, seconds_of))
            parts = [
                f"{part} {_median(runs, lambda one, part=part: spent_by(one)[part]):.1f}" for part in spent_by(runs[0])
            ]
            title = TRL if arm == "trl" else ARMS[arm].title
            lines.append(f"| {title} | {pace:.0f} | {pairs:.0f} | {seconds:.1f} | {', '.join(parts)} |")
    return "\n".join(lines)


def _median(runs: Sequence[Result], of: Callable[[Result], float]) -> float:
    return statistics.median(of(one) for one in runs)
