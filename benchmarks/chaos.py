"""Kill every service in every phase of a job, and look whether anything was lost.

    make chaos                                          the whole matrix, in about an hour; may be interrupted
    make chaos ARGS="--runs 2"                          two more runs of it
    make chaos ARGS="--only actor:playing:SIGKILL"      one kill, alone in its run
    make chaos ARGS=--redis                             only its end: Redis hangs, or is slow, for half a minute

What a run found is kept in `var/chaos`, for this commit and machine, and is not done again; a run in which something
was wrong also leaves its whole folder there. `benchmarks/results/chaos.json` has a row for each cell that was
carried out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.chaos_plan import PHASES, Cell, Run, cells, parse_cell, plan
from benchmarks.chaos_redis import SIGNALS, stalls
from benchmarks.rows import RESULTS, commit, machine

Row = dict[str, Any]

KEPT = Path("var/chaos")
FILE = RESULTS / "chaos.json"


def main(words: Sequence[str] | None = None) -> int:
    """0: every cell that was carried out so far is in order."""
    options = _options().parse_args(words)
    if not options.redis:
        carry_out(_chosen(options), options.runs)
    whole = not options.only and options.runs is None and not is_kept("redis", ())
    if options.redis or whole:
        keep("redis", (), stalls(print))
    written = write(FILE, kept_rows())
    print(table(written["rows"]))
    return 0 if all(row["ok"] for row in written["rows"]) else 1


def carry_out(runs: dict[str, Run], num: int | None) -> None:
    """Those that were not carried out before; num: at most so many."""
    todo = [(name, run) for name, run in runs.items() if not is_kept(name, run)][:num]
    for i, (name, run) in enumerate(todo):
        print(f"Run {i + 1} of {len(todo)}: {', '.join(map(str, run))}", flush=True)
        begun = time.monotonic()
        rows = _one(name, run)
        keep(name, run, rows)
        wrong = sum(not row["ok"] for row in rows)
        print(f"  {len(rows)} kills, {wrong} with a fault, {time.monotonic() - begun:.0f} s", flush=True)


def _one(name: str, run: Run) -> list[Row]:
    """In a folder that stays when something was wrong."""
    from benchmarks import chaos_run

    folder = Path(tempfile.mkdtemp(prefix="vcllm-chaos-"))
    try:
        rows = chaos_run.run(run, folder, lambda line: print(f"  {line}", flush=True))
    except Exception as error:  # a fleet that gives up is a finding, and the other runs go on
        rows = [_row(cell, f"the run ended early: {type(error).__name__}: {error}") for cell in run]
    if all(row["ok"] for row in rows):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        target = KEPT / name
        shutil.rmtree(target, ignore_errors=True)
        KEPT.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, target)
        print(f"  What the run left is in {target}.", flush=True)
    return rows


def _row(cell: Cell, fault: str) -> Row:
    return {"service": cell.service, "phase": cell.phase, "signal": cell.signal, "ok": False, "detail": fault}


def keep(name: str, run: Run, rows: list[Row]) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "commit": commit(), "cells": [*map(str, run)], "rows": rows}
    (KEPT / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def is_kept(name: str, run: Run) -> bool:
    found = _read(KEPT / f"{name}.json")
    return found is not None and found["cells"] == [*map(str, run)]


def kept_rows() -> list[Row]:
    """Of this machine and commit; a cell that was killed alone stands for what it was before."""
    kept: dict[tuple[str, str, str], Row] = {}
    for file in sorted(KEPT.glob("*.json"), key=lambda file: file.stat().st_mtime):
        for row in (_read(file) or {"rows": []})["rows"]:
            kept[row["service"], row["phase"], row["signal"]] = row
    order = {(cell.service, cell.phase, cell.signal): i for i, cell in enumerate(cells())}
    return sorted(kept.values(), key=lambda row: order.get((row["service"], row["phase"], row["signal"]), len(order)))


def _read(file: Path) -> dict[str, Any] | None:
    """None: there is none, or it is of another commit or machine."""
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    return found if (found["machine"], found["commit"]) == (machine(), commit()) else None


def write(file: Path, rows: list[Row]) -> dict[str, Any]:
    """missing: cells of the matrix that were not carried out yet."""
    done = {(row["service"], row["phase"], row["signal"]) for row in rows}
    wanted = [(cell.service, cell.phase, cell.signal) for cell in cells()]
    wanted += [("redis", "serving", signal) for signal in SIGNALS.values()]
    missing = [":".join(cell) for cell in wanted if cell not in done]
    head = {"machine": machine(), "commit": commit(), "date": datetime.now(UTC).date().isoformat()}
    written = {**head, "missing": missing, "rows": rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return written


def table(rows: Sequence[Row]) -> str:
    """A line for each service and signal, a column for each phase, then what was wrong."""
    phases = sorted({row["phase"] for row in rows}, key=[*PHASES, "serving"].index)
    lines = [f"| | signal | {' | '.join(phases)} |", f"|---|---|{':-:|' * len(phases)}"]
    marks = {(row["service"], row["signal"], row["phase"]): "ok" if row["ok"] else "**no**" for row in rows}
    for service, signal in dict.fromkeys((row["service"], row["signal"]) for row in rows):
        shown = " | ".join(marks.get((service, signal, phase), "–") for phase in phases)
        lines.append(f"| {service} | {signal} | {shown} |")
    wrong = [row for row in rows if not row["ok"]]
    lines += ["", f"{len(rows)} cells, {len(wrong)} with a fault."]
    lines += [f"- {row['service']}, {row['phase']}, {row['signal']}: {row['detail']}" for row in wrong]
    return "\n".join(lines)


def _chosen(options: argparse.Namespace) -> dict[str, Run]:
    """By the name under which the result is kept."""
    if options.only:
        return {f"only-{str(cell).replace(':', '-').replace(' ', '-')}": (cell,) for cell in options.only}
    return {f"run-{options.seed}-{i:02d}": run for i, run in enumerate(plan(options.seed))}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, metavar="N", help="at most so many runs that were not carried out yet")
    parser.add_argument("--seed", type=int, default=0, help="which services meet in a run (0)")
    parser.add_argument(
        "--only",
        type=_cell,
        action="append",
        metavar="CELL",
        help="SERVICE:PHASE:SIGNAL, alone in a run; may be repeated",
    )
    parser.add_argument("--redis", action="store_true", help="only stop and slow Redis, with chat going on")
    return parser


def _cell(text: str) -> Cell:
    try:
        return parse_cell(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    raise SystemExit(main())
