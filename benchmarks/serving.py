"""Chat serving beside `transformers serve` and vLLM: the same model, prompts and load over HTTP, taking turns.

    make bench-serving                                        everything; needs `make vllm` for vLLM
    make bench-serving ARGS="--budget-minutes 25"             fewer pairs, one at least, to end about then
    make bench-serving ARGS="--quick"                         the small model, one short pair: does it run, not how fast
    make bench-serving ARGS="--only ours --models 4m"         our Actor alone, without results; --ours: of that checkout
    make bench-serving ARGS="--gpu"                           the engine on large random models, on CUDA

Every server is a process of its own, and so is the load. Writes `benchmarks/results/serving.json` and the tables of
`docs/performance.md`; quick runs and those of ours alone only print.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import serving_gpu
from benchmarks.budget import Budget
from benchmarks.rows import DOCUMENT, RESULTS, Better, Row, fill, lonely_row, paired_row, write_results
from benchmarks.serving_servers import OURS, PEERS, ROOT, DidNotStart, Place, Server, Variant, embedded_redis

HOME = ROOT / "var" / "bench" / "serving"

NEW_TOKENS = 64
CONCURRENCIES = (1, 8, 32)
REQUESTS = {"4m": {1: 8, 8: 32, 32: 128}, "89m": {1: 3, 8: 16, 32: 64}}
"""Per measurement: some seconds for the faster sides."""
SERIAL = "plain"
"""Answers one request after the other, so a single round of requests tells as much as several."""
WARM_UP_TOKENS = 8
CALIBRATION_TOKENS, CALIBRATION_RUNS = 16, 2
"""The better run counts: whatever disturbs one must not choose the variant."""
SHARED_CONCURRENCY = 8
PAUSE_S = 0.3
"""After a server was woken."""
SHARES = {"4m": 2, "89m": 3}
"""How a budget of time is split."""
SIZES = tuple(SHARES)
QUICK_SIZE, QUICK_CONCURRENCIES, QUICK_ROUNDS = "4m", (1, 8), 1


@dataclass(frozen=True)
class Cell:
    """One load on one server. `shared`: a system prompt of 200 tokens stands before every question."""

    concurrency: int
    requests: int
    shared: bool = False

    @property
    def title(self) -> str:
        return f"{self.concurrency} at once" + (", 200 tokens shared" if self.shared else "")


@dataclass(frozen=True)
class Measured:
    """What one load gave; times in milliseconds."""

    tokens_per_s: float
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    whole_p99: float
    texts: list[str]
    num_prompt_tokens: int
    client_share: float
    """Of one core, what the load itself took."""


FIGURES: tuple[tuple[str, str, str, Better], ...] = (
    ("tokens_per_s", "throughput", "tokens/s", "more"),
    ("first_p50", "first token, median", "ms", "less"),
    ("first_p99", "first token, 99 %", "ms", "less"),
    ("gap_p50", "gap between tokens, median", "ms", "less"),
    ("gap_p99", "gap between tokens, 99 %", "ms", "less"),
    ("whole_p99", "whole answer, 99 %", "ms", "less"),
)
"""Field, its name in a row, unit, what is better."""


@dataclass
class Bench:
    """What all series share."""

    options: argparse.Namespace
    place: Place
    budget: Budget
    redis_url: str
    texts: dict[str, Any]
    calibrations: list[str] = field(default_factory=list)
    same_texts: dict[str, float] = field(default_factory=dict)
    """By peer: share of the answers that are ours word for word; meaningful where nothing is drawn."""
    client_share: float = 0.0
    _asked: int = 0

    @property
    def sampled(self) -> bool:
        return bool(self.options.temperature > 0)

    def questions(self, number: int) -> list[str]:
        """Never asked before, so that nobody's cache knows them."""
        first, self._asked = self._asked, self._asked + number
        known = self.texts["questions"]
        return [f"{at}. {known[at % len(known)]}" for at in range(first, first + number)]

    def cells(self, size: str) -> list[Cell]:
        if self.options.quick:
            return [Cell(number, QUICK_ROUNDS * number) for number in QUICK_CONCURRENCIES]
        found = [Cell(number, requests) for number, requests in REQUESTS[size].items()]
        return [*found, Cell(SHARED_CONCURRENCY, REQUESTS[size][SHARED_CONCURRENCY], shared=True)]


# One measurement.


def measure(bench: Bench, server: Server, cell: Cell, questions: list[str], new_tokens: int = NEW_TOKENS) -> Measured:
    """Put the load on a server that is awake; AssertionError for any answer that is not whole."""
    bodies = [body(bench, server, cell, question, new_tokens) for question in questions]
    task = bench.place.home / "load.json"
    load = {
        "port": server.port,
        "secret": server.command.secret,
        "bodies": bodies,
        "concurrency": cell.concurrency,
    }
    task.write_text(json.dumps(load))
    command = [sys.executable, "-m", "benchmarks.serving_load", str(task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    answers = sorted(found["answers"], key=lambda each: each["at"])
    for each in answers:
        assert each["error"] is None, f"{' '.join(server.command.words)} answered: {each['error']}"
        assert each["num_tokens"] == new_tokens, (
            f"{each['num_tokens']} tokens were written, {new_tokens} were asked for"
        )
    first, whole = ([1e3 * each[name] for each in answers] for name in ("first_s", "last_s"))
    gaps = [1e3 * gap for each in answers for gap in each["gaps_s"]]
    return Measured(
        tokens_per_s=new_tokens * len(answers) / found["seconds"],
        first_p50=statistics.median(first),
        first_p99=quantile(first, 0.99),
        gap_p50=statistics.median(gaps),
        gap_p99=quantile(gaps, 0.99),
        whole_p99=quantile(whole, 0.99),
        texts=[each["text"] for each in answers],
        num_prompt_tokens=sum(each["num_prompt_tokens"] for each in answers),
        client_share=found["client_cpu_s"] / found["seconds"],
    )


def body(bench: Bench, server: Server, cell: Cell, question: str, new_tokens: int) -> dict[str, Any]:
    """The same for every server but for the model's name."""
    system = [{"role": "system", "content": bench.texts["system"]}] if cell.shared else []
    return {
        "model": server.command.model,
        "messages": [*system, {"role": "user", "content": question}],
        "max_tokens": new_tokens,
        "temperature": bench.options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def warm_up(bench: Bench, server: Server, cell: Cell) -> None:
    measure(bench, server, cell, bench.questions(cell.concurrency), WARM_UP_TOKENS)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


# A model on all servers.


@dataclass
class Side:
    """One server that takes part."""

    name: str
    """As in PEERS, or `ours`."""
    server: Server
    label: str
    """As rows show it."""
    ready_s: list[float]
    found: dict[Cell, list[Measured]] = field(default_factory=dict)


def series(bench: Bench, size: str, share: float) -> list[Row]:
    """All cells of one model, in pairs."""
    going_on = bench.budget.pairs(share, bench.options.pairs)
    reasons = {name: reason for name in peers(bench) if (reason := bench.place.missing(PEERS[name][0].maker))}
    with opened(bench, size, reasons) as sides:
        cells = bench.cells(size)
        while going_on(done := min(len(found) for found in ([*sides[0].found.values()] or [[]]))):
            for cell in cells:
                turn(bench, sides, cell, done)
        rows = ready_rows(size, sides, reasons)
        for cell in cells:
            rows += cell_rows(bench, size, cell, sides, reasons)
    return rows


def peers(bench: Bench) -> list[str]:
    return [] if bench.options.only == "ours" else list(PEERS)


@contextmanager
def opened(bench: Bench, size: str, reasons: dict[str, str]) -> Iterator[list[Side]]:
    """Ours and each peer's fastest variant, started and at rest; why others are not there goes into `reasons`."""
    sides: list[Side] = []
    try:
        for name in ["ours", *peers(bench)]:
            if name in reasons:
                continue
            try:
                sides.append(open_side(bench, name, size))
            except DidNotStart as error:
                if name == "ours":
                    raise
                reasons[name] = f"did not start: {error}"
        yield sides
    finally:
        for side in sides:
            side.server.end()


def open_side(bench: Bench, name: str, size: str) -> Side:
    """Started twice: every start is timed, the first may have to compile."""
    variant = OURS if name == "ours" else fastest(bench, name, size)
    starts = 1 if bench.options.quick else 2
    ready: list[float] = []
    for number in range(starts):
        server = bench.place.start(variant, size, bench.redis_url)
        ready.append(server.ready_s)
        if number + 1 < starts:
            server.end()
    print(f"    {name}: {variant.label}, ready after {min(ready):.1f} s", flush=True)
    return Side(name, server, f"{bench.place.name_of(variant.maker)}, {variant.label}", ready)


def fastest(bench: Bench, name: str, size: str) -> Variant:
    """By the geometric mean of tokens a second, over all numbers in flight, of a short run of each variant.

    Precision first, by the variants that start quickest; the rest with the better precision only.
    """
    choices = PEERS[name]
    if bench.options.quick or len(choices) == 1:
        return choices[0]
    rates: dict[Variant, float] = {}
    for variant in choices:
        precision = best.dtype if (best := max(rates, key=rates.__getitem__, default=None)) else None
        if len(rates) >= 2 and variant.dtype != precision:
            continue
        try:
            rates[variant] = calibrate(bench, variant, name, size)
        except DidNotStart as error:
            print(f"    calibration: {name}, {variant.label} did not start: {error}", flush=True)
    if not rates:
        raise DidNotStart("none of its variants did; see the lines above")
    for variant, rate in rates.items():
        line = f"{size.upper()}: {bench.place.name_of(variant.maker)}, {variant.label}: {rate:.0f} tokens/s"
        bench.calibrations.append(line)
        print(f"    calibration: {line}", flush=True)
    return max(rates, key=rates.__getitem__)


def calibrate(bench: Bench, variant: Variant, name: str, size: str) -> float:
    server = bench.place.start(variant, size, bench.redis_url)
    try:
        with server.turn():
            rates = []
            for number in CONCURRENCIES[:2] if name == SERIAL else CONCURRENCIES:
                cell = Cell(number, number)
                warm_up(bench, server, cell)
                found = [
                    measure(bench, server, cell, bench.questions(number), CALIBRATION_TOKENS)
                    for _ in range(CALIBRATION_RUNS)
                ]
                rates.append(max(one.tokens_per_s for one in found))
        return statistics.geometric_mean(rates)
    finally:
        server.end()


def turn(bench: Bench, sides: list[Side], cell: Cell, done: int) -> None:
    """Every side once, on the same questions; every other pair the other way round."""
    questions = bench.questions(cell.requests)
    for side in reversed(sides) if done % 2 else sides:
        if side.name == SERIAL and done >= bench.options.plain_pairs:
            continue
        asked = questions[: max(cell.concurrency, 2)] if side.name == SERIAL else questions
        with side.server.turn():
            time.sleep(PAUSE_S)
            warm_up(bench, side.server, cell)
            one = measure(bench, side.server, cell, asked)
        side.found.setdefault(cell, []).append(one)
        bench.client_share = max(bench.client_share, one.client_share)
        print(
            f"    {cell.title}, {side.name}: {one.tokens_per_s:.0f} tokens/s,"
            f" first {one.first_p50:.0f} ms, gaps {one.gap_p50:.1f} ms",
            flush=True,
        )
    ours = sides[0].found[cell][-1]
    for side in sides[1:]:
        if len(theirs := side.found.get(cell, [])) == len(sides[0].found[cell]):
            compare(bench, side, ours, theirs[-1])


def compare(bench: Bench, side: Side, ours: Measured, theirs: Measured) -> None:
    """Same prompts in, and, where nothing is drawn, the share of answers that came out the same."""
    if len(ours.texts) == len(theirs.texts):
        assert ours.num_prompt_tokens == theirs.num_prompt_tokens, f"{side.name} reads other prompts than ours"
    if not bench.sampled:
        equal = [one == other for one, other in zip(ours.texts, theirs.texts, strict=False)]
        bench.same_texts[side.label] = min(bench.same_texts.get(side.label, 1.0), sum(equal) / len(equal))


# Rows and the document.


def ready_rows(size: str, sides: list[Side], reasons: dict[str, str]) -> list[Row]:
    name, ours = f"{size.upper()}: start to first healthy answer", sides[0].ready_s
    rows = [paired_row(name, "s", ours, side.ready_s, side.label, "less") for side in sides[1:]]
    return rows + [lonely_row(name, "s", ours, title, reason) for title, reason in reasons.items()]


def cell_rows(bench: Bench, size: str, cell: Cell, sides: list[Side], reasons: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    kind = f"{size.upper()}, {cell.title}" + (f", temperature {bench.options.temperature:g}" if bench.sampled else "")
    for field_name, title, unit, better in FIGURES:
        name = f"{kind}: {title}"
        ours = [getattr(one, field_name) for one in sides[0].found[cell]]
        for side in sides[1:]:
            theirs = [getattr(one, field_name) for one in side.found[cell]]
            rows.append(paired_row(name, unit, ours[: len(theirs)], theirs, side.label, better))
        rows += [lonely_row(name, unit, ours, peer, reason) for peer, reason in reasons.items()]
        if len(sides) == 1 and not reasons:
            rows.append(lonely_row(name, unit, ours, "none", "not asked for"))
    return rows


def report(results: dict[str, Any]) -> str:
    """What the document says of the results: a line per load and peer, figures side by side."""
    rows = results["rows"]
    parts = [
        f"{results['machine']}; commit `{results['commit']}`; {results['date']}. "
        "Each cell: ours / peer; medians of pairs. The ratio is of tokens a second, range in brackets.",
        load_table(rows),
    ]
    ready = [row for row in rows if row["unit"] == "s"]
    if ready:
        lines = ["| start to first healthy answer | ours, s | peer, s | peer is |", "|---|--:|--:|---|"]
        lines += [
            f"| {row['name'].partition(':')[0]} | {shown(row['ours'])} | {shown(row['peer'])} | {who(row)} |"
            for row in ready
        ]
        parts.append("\n".join(lines))
    if found := results.get("same_texts"):
        parts.append("Greedy answers that equal ours word for word, least of all measurements: " + listed(found) + ".")
    if found := results.get("calibrations"):
        parts.append("Calibrations (geometric mean over the numbers in flight): " + "; ".join(found) + ".")
    return "\n\n".join(parts)


def load_table(rows: list[Row]) -> str:
    lines = [
        "| | tokens/s | first token, ms: median | 99 % | gap, ms: median | 99 % | peer is | ratio (range) | runs |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    grouped: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        load, _, figure = row["name"].partition(": ")
        grouped.setdefault((load, row["peer_name"]), {})[figure] = row
    for (load, _), figures in grouped.items():
        if (speed := figures.get("throughput")) is None:
            continue
        told = [figures[title] for _, title, _, _ in FIGURES[:5]]
        pairs = " | ".join(f"{shown(row['ours'])} / {shown(row['peer'])}" for row in told)
        lonely = speed["peer"] is None
        ratio = "–" if lonely else f"**{speed['ratio']:.2f}** ({speed['ratio_min']:.2f}–{speed['ratio_max']:.2f})"
        lines.append(f"| {load} | {pairs} | {who(speed)} | {ratio} | {speed['runs']} |")
    return "\n".join(lines)


def who(row: Row) -> str:
    return row["peer_name"] if row["peer"] is not None else f"{row['peer_name']}: {row['reason']}"


def shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def listed(shares: dict[str, float]) -> str:
    return "; ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def save(bench: Bench, rows: list[Row]) -> dict[str, Any]:
    """The results file and the document; after runs that are no comparison, a file that nobody keeps."""
    kept = not bench.options.quick and bench.options.only != "ours"
    file = (RESULTS if kept else HOME) / "serving.json"
    if not kept:
        file.unlink(missing_ok=True)
    more = {
        "calibrations": bench.calibrations,
        "same_texts": bench.same_texts,
        "client_share_of_a_core": round(bench.client_share, 3),
    }
    written = write_results(file, rows, **more)
    if kept:
        DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8"), "serving", report(written)), encoding="utf-8")
    return written


# From the command line to the document.


def main() -> int:
    options = read_options()
    if options.gpu:
        return serving_gpu.main(options)
    prepare_data()
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    place = Place(HOME, threads, ours=options.ours.resolve(), vllm_python=options.vllm_python.absolute())
    texts = json.loads((HOME / "data" / "texts.json").read_text())
    with embedded_redis(HOME / "redis") as redis_url:
        bench = Bench(options, place, Budget(options.budget_minutes), redis_url, texts)
        rows: list[Row] = []
        for number, size in enumerate(options.models):
            print(f"{size.upper()}, {threads} threads:", flush=True)
            left = sum(SHARES[other] for other in options.models[number:])
            rows += series(bench, size, SHARES[size] / left)
            written = save(bench, rows)  # what is measured is kept, whatever comes next
    print(report(written))
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short pair on the small model; writes no results")
    parser.add_argument("--only", choices=["ours"], help="ours: no peers; writes no results")
    parser.add_argument("--models", default=None, help=f"comma-separated; default: {','.join(SIZES)}")
    parser.add_argument("--pairs", type=int, default=5, help="how often each comparison is run; default: 5")
    parser.add_argument("--plain-pairs", type=int, default=1, help="the same for the serial server; default: 1")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy, the default")
    parser.add_argument("--budget-minutes", type=float, help="fewer pairs, one at least, to end about then")
    parser.add_argument("--ours", type=Path, default=ROOT, help="a checkout whose Actor is measured; default: this one")
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm/bin/python", help="vLLM's interpreter")
    parser.add_argument("--gpu", action="store_true", help="the engine on large random models instead; needs CUDA")
    options = parser.parse_args()
    if options.quick:
        options.pairs = 1
    options.models = (options.models or (QUICK_SIZE if options.quick else ",".join(SIZES))).split(",")
    if unknown := set(options.models) - set(SIZES):
        parser.error(f"There is no model '{unknown.pop()}'. Choose from: {', '.join(SIZES)}.")
    return options


def prepare_data() -> None:
    """Once, in a process of its own: this one stays small and idle beside what it measures."""
    data = HOME / "data"
    if (data / "texts.json").is_file():
        return
    print("making models and prompts", flush=True)
    made = data.with_name(".data.tmp")
    shutil.rmtree(made, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "benchmarks.serving_data", str(made)], cwd=ROOT, check=True)
    shutil.rmtree(data, ignore_errors=True)
    made.rename(data)


if __name__ == "__main__":
    sys.exit(main())
