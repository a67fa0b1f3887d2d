"""Training speed and memory against TRL, on the same model, rows, tokens a step and optimiser; ours and TRL take turns.

    make bench-training                                       everything: an hour of two idle cores
    make bench-training ARGS="--quick"                        a minute or two: does it run, not how fast
    make bench-training ARGS="--only sft-4m,preference-4m"
    make bench-training ARGS="--gpu"                          LoRA on a 7B model, where there is a CUDA device

Every measurement is a process of its own. Ours is `python -m vcllm.training`, as the trainer starts it. Writes
`benchmarks/results/training.json` and the tables of `docs/performance.md`; a quick run only prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.budget import Budget
from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, gpu, lonely_row, paired_row, table, write_results
from benchmarks.training_task import Kind, Measured, Task, Variant
from services.trainer.launching import environment
from vcllm.contracts.recipes import Base, Lora, Optim, PreferenceStage, SftStage, StageOrder
from vcllm.contracts.runs import DATASET, ORDER, RESULT

ROOT = Path(__file__).parent.parent
HOME = ROOT / "var" / "bench" / "training"

WARM_UP = 2
"""Steps of an SFT run that are not timed: the first ones allocate. Preference runs are timed whole, as two epochs with
their reference pass are what a user waits for."""
SFT_STEPS = {"4m": 12, "89m": 4}
"""Timed ones, of some 2100 tokens. 4M: more than starting TRL takes. 89M: a step of TRL takes some ten seconds on two
cores, and four such steps differ less from run to run than the machine does."""
CHATS_PER_STEP = 16
PAIRS = {"4m": 64, "89m": 16, "151k": 8}
PAIRS_PER_STEP = 8
"""16 answers, as many sequences as an SFT step has."""
EPOCHS = 2
LEARNING_RATE = {"sft": {"4m": 1e-3, "89m": 3e-4, "7b": 1e-4}, "preference": {"4m": 5e-5, "89m": 1e-5, "7b": 5e-6}}
CALIBRATION_STEPS = 3
"""By which TRL's fastest variant is found, the first not timed, or as many pairs as a step has: speeds of variants lie
further apart than runs of one do."""
MEMORY_RUNS = 2
"""Memory hardly varies from run to run."""
SHARES = {"sft-4m": 3, "sft-89m": 8, "preference-4m": 2, "preference-89m": 6, "memory": 2, "curves": 2, "gpu": 1}
"""How a budget of time is split."""
CURVE_ENDS = (5, 10, 20, 40)
GPU_SFT_STEPS, GPU_PAIRS, GPU_CHATS_PER_STEP, GPU_LORA_RANK = 20, 64, 32, 16
QUICK_STEPS, QUICK_PAIRS = 1, 8

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16, SXM boards."""

DEFAULT = Variant("default")
PACKING = Variant("packing", packing="flat")
SFT_CHOICES = [
    Variant("length-grouped", grouped=True, tuned=True),
    Variant("packing", packing="flat", tuned=True),
    Variant("packing, a pass per pack", packing="accumulated", tuned=True),
]
PREFERENCE_CHOICES = [
    Variant("precomputed reference", precompute=True, tuned=True),
    Variant("length-grouped", grouped=True, tuned=True),
    Variant("precomputed reference, length-grouped", precompute=True, grouped=True, tuned=True),
]
LEAN_CHOICES = [
    Variant("precomputed reference", precompute=True),
    Variant("precomputed reference, gradient checkpointing", precompute=True, checkpointing=True),
]


@dataclass
class Bench:
    """What all series share."""

    options: argparse.Namespace
    budget: Budget
    fastest: dict[str, Variant] = field(default_factory=dict)
    """TRL's best variant by kind, found on the first size that is measured."""

    @property
    def data(self) -> Path:
        return HOME / "data"

    @cached_property
    def missing(self) -> str | None:
        """Why TRL cannot be run; None where it can."""
        try:
            version("trl")
            return None
        except PackageNotFoundError:
            return "not installed; `make bench-training` installs it"

    def name_of(self, trainer: str, variant: Variant) -> str:
        how = [variant.label, *(["eager attention"] if variant.attention == "eager" else [])]
        if variant.tuned:
            how.append("our environment")
        return f"TRL {'' if self.missing else version('trl') + ' '}{trainer}, {', '.join(how)}"

    @cached_property
    def imported(self) -> dict[str, int]:
        """Resident bytes of either side's process when all is imported and nothing is loaded."""
        sides = {"ours": "vcllm.training.run"} | ({} if self.missing else {"peer": "benchmarks.peers.trl_training"})
        return {side: self.say(_IMPORT.format(module=module))["bytes"] for side, module in sides.items()}

    @cached_property
    def bfloat16(self) -> bool:
        return self.say(_BFLOAT16)["bfloat16"]

    def say(self, program: str) -> dict[str, Any]:
        """What a line of Python prints as JSON."""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=plain())
        return json.loads(done.stdout.splitlines()[-1])


_IMPORT = (
    "import json, resource, {module}; "
    "print(json.dumps({{'bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}))"
)
_BFLOAT16 = (
    "import json; from vcllm.training.parallel import Parallel; print(json.dumps({'bfloat16': Parallel().mixed}))"
)


# The series. Each gives the rows of its results.


def sft(bench: Bench, size: str, going_on: Callable[[int], bool]) -> list[Row]:
    steps = QUICK_STEPS if bench.options.quick else SFT_STEPS[size]
    task = new_task(bench, "sft", size, (WARM_UP + steps) * CHATS_PER_STEP)
    calibration = replace(task, num_rows=(2 if bench.options.quick else CALIBRATION_STEPS) * CHATS_PER_STEP)
    best = None if bench.missing else fastest(bench, calibration, SFT_CHOICES)
    variants = [DEFAULT, PACKING, best] if size == "4m" else [DEFAULT, best]
    return speed_rows(bench, f"SFT {label(size)}", task, variants, going_on)


def preference(bench: Bench, size: str, going_on: Callable[[int], bool]) -> list[Row]:
    """Two epochs, reference pass included."""
    task = new_task(bench, "preference", size, QUICK_PAIRS if bench.options.quick else PAIRS[size])
    task = replace(task, epochs=EPOCHS)
    calibration = replace(task, num_rows=PAIRS_PER_STEP)
    best = None if bench.missing else fastest(bench, calibration, PREFERENCE_CHOICES)
    return speed_rows(bench, f"Preference {label(size)}, two epochs", task, [DEFAULT, best], going_on)


def memory(bench: Bench, going_on: Callable[[int], bool]) -> list[Row]:
    """Peak of a preference run with a large vocabulary."""
    rows = QUICK_PAIRS if bench.options.quick else PAIRS["151k"]
    task = replace(new_task(bench, "preference", "4m", rows), model=bench.data / "151k")
    found: dict[Variant | None, list[int]] = {None: []}
    while going_on(len(found[None])) and len(found[None]) < MEMORY_RUNS:
        found[None].append(run_ours(task).peak_bytes)
        for variant in [] if bench.missing else [DEFAULT, *LEAN_CHOICES]:
            found.setdefault(variant, []).append(run_trl(replace(task, variant=variant)).peak_bytes)
    name = "Preference, vocabulary 151,936, 42M: peak memory"
    ours = found.pop(None)
    if bench.missing:
        return [lonely_row(name, "bytes", ours, "TRL DPOTrainer", bench.missing)]
    lean = min(LEAN_CHOICES, key=lambda variant: statistics.median(found[variant]))
    rows_made = []
    for variant in (DEFAULT, lean):
        who, theirs = bench.name_of("DPOTrainer", variant), found[variant]
        rows_made.append(paired_row(name, "bytes", ours, theirs, who, "less"))
        grown = [peak - bench.imported["ours"] for peak in ours], [peak - bench.imported["peer"] for peak in theirs]
        rows_made.append(paired_row(f"{name} beyond the imports", "bytes", *grown, who, "less"))
    imports = [[bench.imported[side]] for side in ("ours", "peer")]
    who = f"TRL {version('trl')}, imported, nothing loaded"
    return [*rows_made, paired_row("Memory after imports", "bytes", *imports, who, "less")]


def curves(bench: Bench) -> list[dict[str, Any]]:
    """Mean training loss between two numbers of steps, on both sides; each shuffles in its own way."""
    ends = (1, 2) if bench.options.quick else CURVE_ENDS
    task = new_task(bench, "sft", "4m", ends[-1] * CHATS_PER_STEP)
    sides = {"ours": run_ours(task).losses}
    if not bench.missing:
        sides["peer"] = run_trl(task).losses
    windows = zip((0, *ends), ends, strict=False)
    return [
        {"steps": f"{start + 1}–{end}"}
        | {side: round(statistics.mean(losses[start:end]), 4) for side, losses in sides.items()}
        for start, end in windows
    ]


def on_gpu(bench: Bench, going_on: Callable[[int], bool]) -> list[Row]:
    """LoRA on a model of 7B shape whose weights are drawn on the device: tokens a second, use of the device, memory."""
    device = gpu()
    if device is None:
        raise SystemExit("--gpu needs a CUDA device; nvidia-smi finds none.")
    count = json.loads((bench.data / "ready.json").read_text())["parameters"]["7b"]
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    rows: list[Row] = []
    for kind in ("sft", "preference"):
        per_step = GPU_CHATS_PER_STEP if kind == "sft" else PAIRS_PER_STEP
        number = (WARM_UP + GPU_SFT_STEPS) * per_step if kind == "sft" else GPU_PAIRS
        task = new_task(bench, kind, "7b", QUICK_STEPS * 3 * per_step if bench.options.quick else number)
        task = replace(task, lora_rank=GPU_LORA_RANK, random_weights=True, rows_per_step=per_step)
        task = replace(task, epochs=1 if kind == "sft" else EPOCHS)
        variants = [DEFAULT, replace(SFT_CHOICES[0] if kind == "sft" else PREFERENCE_CHOICES[0], tuned=False)]
        title = f"{'SFT' if kind == 'sft' else 'Preference'} 7B, LoRA {GPU_LORA_RANK}"
        measured = take_turns(bench, task, variants, going_on)
        figures: list[tuple[str, str, Callable[[Measured], float]]] = [("", "tokens/s", lambda found: found.rate)]
        if peak is not None:
            figures.append((": MFU", "%", lambda found: 100 * 6 * count * found.rate / peak))
        figures.append((": peak device memory", "bytes", lambda found: float(found.device_peak_bytes or 0)))
        for end, unit, figure in figures:
            rows += rows_of(bench, title + end, unit, task.kind, measured, figure)
    return rows


# What the series are made of.


def new_task(bench: Bench, kind: Kind, size: str, num_rows: int) -> Task:
    return Task(
        kind=kind,
        model=bench.data / size,
        rows=bench.data / f"{kind}.jsonl",
        num_rows=num_rows,
        rows_per_step=CHATS_PER_STEP if kind == "sft" else PAIRS_PER_STEP,
        learning_rate=LEARNING_RATE[kind][size],
        bfloat16=bench.bfloat16,
    )


def fastest(bench: Bench, task: Task, choices: list[Variant]) -> Variant:
    """TRL's best variant by a short run of each; first which attention is faster, then everything else with that."""
    if (known := bench.fastest.get(task.kind)) is not None:
        return known
    start = Variant("default", tuned=True)
    rates = {one: run_trl(replace(task, variant=one)).rate for one in (start, replace(start, attention="eager"))}
    attention = max(rates, key=lambda one: rates[one]).attention
    for choice in choices:
        one = replace(choice, attention=attention)
        rates[one] = run_trl(replace(task, variant=one)).rate
    for one, rate in rates.items():
        print(f"    calibration: {one.label}, {one.attention}: {rate:.0f} tokens/s", flush=True)
    bench.fastest[task.kind] = max(rates, key=lambda one: rates[one])
    return bench.fastest[task.kind]


Turns = dict[Variant | None, list[Measured]]
"""By side, None for ours: what it measured in each pair."""


def take_turns(bench: Bench, task: Task, variants: list[Variant], going_on: Callable[[int], bool]) -> Turns:
    """Ours and each variant once a pair; every other pair the other way round."""
    sides: list[Variant | None] = [None, *([] if bench.missing else variants)]
    found: Turns = {side: [] for side in sides}
    while going_on(done := len(found[None])):
        for side in reversed(sides) if done % 2 else sides:
            if side is not None and side.tuned and done >= bench.options.best_pairs:
                continue
            one = run_ours(task) if side is None else run_trl(replace(task, variant=side))
            print(f"    {side.label if side else 'ours'}: {one.rate:.0f} tokens/s", flush=True)
            found[side].append(one)
    return found


def speed_rows(
    bench: Bench, name: str, task: Task, variants: list[Variant | None], going_on: Callable[[int], bool]
) -> list[Row]:
    known = [variant for variant in variants if variant is not None]
    measured = take_turns(bench, task, known, going_on)
    return rows_of(bench, name, "tokens/s", task.kind, measured, lambda one: one.rate)


def rows_of(
    bench: Bench, name: str, unit: str, kind: Kind, turns: Turns, figure: Callable[[Measured], float]
) -> list[Row]:
    trainer = "SFTTrainer" if kind == "sft" else "DPOTrainer"
    ours = [figure(one) for one in turns[None]]
    if bench.missing:
        return [lonely_row(name, unit, ours, f"TRL {trainer}", bench.missing)]
    better = "less" if unit == "bytes" else "more"
    return [
        paired_row(
            name, unit, ours[: len(theirs)], [figure(one) for one in theirs], bench.name_of(trainer, variant), better
        )
        for variant, theirs in turns.items()
        if variant is not None
    ]


def label(size: str) -> str:
    return size.upper()


# One measurement.


def run_ours(task: Task) -> Measured:
    """A job folder as the supervisor writes it, and the process that it starts."""
    folder, ordered = new_folder("ours"), order(task)
    (folder / ORDER).write_text(ordered.model_dump_json())
    with (folder / DATASET).open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in task.read_rows())
    module = "benchmarks.random_weights" if task.random_weights else "vcllm.training"
    said, peak = run_process([module, str(folder), str(folder / "store")], folder, plain() | environment(ordered))
    metrics = json.loads((folder / RESULT).read_text())["metrics"]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    laid_out = sum(step["tokens"] for step in steps)
    assert laid_out == task.laid_out_tokens, f"{laid_out} tokens were trained, {task.laid_out_tokens} were meant to be"
    shutil.rmtree(folder)
    on_device = json.loads(said[-1])["memory_bytes"] if task.random_weights else None
    return measured(task, steps, metrics.get("reference_seconds", 0.0), peak, on_device)


def run_trl(task: Task) -> Measured:
    folder = new_folder("trl")
    (folder / "task.json").write_text(task.to_json())
    # Tuned: the environment of a run that has the machine to itself.
    around = plain() | (environment(order(task)) if task.variant.tuned else {})
    said, peak = run_process(["benchmarks.peers.trl_training", str(folder / "task.json")], folder, around)
    found = json.loads(said[-1])
    trained = sum(step["tokens"] for step in found["steps"])
    assert trained == task.tokens, f"TRL trained {trained} tokens, {task.tokens} were meant to be"
    shutil.rmtree(folder)
    return measured(task, found["steps"], found["reference_seconds"], peak, found["device_peak_bytes"])


def measured(task: Task, steps: list[Row], reference_s: float, peak: int, on_device: int | None) -> Measured:
    """SFT: all steps but the first ones. Preference: everything, and each prompt counts once for each answer."""
    first = min(WARM_UP, len(steps) // 2) if task.kind == "sft" else 0
    tokens = sum(step["tokens"] for step in steps[first:]) if task.kind == "sft" else task.tokens
    seconds = reference_s + sum(step["seconds"] for step in steps[first:])
    return Measured(tokens, seconds, peak, [step["loss"] for step in steps], on_device)


def order(task: Task) -> StageOrder:
    """The task for our trainer; a step holds the tokens that TRL's rows of a step have on average."""
    optim = Optim(
        learning_rate=task.learning_rate,
        batch_tokens=round(task.laid_out_tokens / task.epochs / task.num_rows * task.rows_per_step),
        epochs=task.epochs,
        warmup_share=0.0,
        schedule="constant",
        clip_norm=1.0,
        max_length=task.max_length,
        checkpoint_every_s=1e6,  # TRL saves nothing either
    )
    stage: SftStage | PreferenceStage = SftStage(optim=optim)
    if task.kind == "preference":
        stage = PreferenceStage(optim=optim, beta=task.beta, sft_weight=0.0)
    return StageOrder(
        stage=stage,
        role="actor",
        version="bench",
        lineage="bench",
        seed=task.seed,
        base=Base(model=str(task.model)),
        lora=Lora(rank=task.lora_rank, alpha=2 * task.lora_rank) if task.lora_rank else None,
        dataset="",
        recipe="bench",
        recipe_hash="",
        charter="",
    )


def run_process(command: list[str], folder: Path, around: dict[str, str]) -> tuple[list[str], int]:
    """Lines that `python -m command` printed, and its peak resident bytes; RuntimeError with its last words."""
    out, log = folder / "stdout.txt", folder / "log.txt"
    with out.open("w") as said, log.open("w") as complained:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=said, stderr=complained, cwd=ROOT, env=around
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{last}")
    return out.read_text().splitlines(), usage.ru_maxrss * 1024


def plain() -> dict[str, str]:
    """The environment of both sides: this one without anybody's tuning, all cores, no network."""
    ours = {"OMP_WAIT_POLICY", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    threads = kept.get("OMP_NUM_THREADS", str(os.cpu_count()))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(HOME / "cache")}
    return kept | offline | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}


def new_folder(side: str) -> Path:
    folder = HOME / "runs" / side
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# From the command line to the document.


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one pair, few steps, the small model; writes no results")
    parser.add_argument("--only", default="", help="series, comma-separated: " + ", ".join(series_of(["4m", "89m"])))
    parser.add_argument("--pairs", type=int, default=5, help="how often each comparison is run; default: 5")
    parser.add_argument("--best-pairs", type=int, default=5, help="the same for TRL's fastest variant; default: 5")
    parser.add_argument("--sizes", default=None, help="of the models, comma-separated; default: 4m,89m")
    parser.add_argument("--budget-minutes", type=float, help="fewer pairs, one at least, to end about then")
    parser.add_argument("--gpu", action="store_true", help="LoRA on a 7B model instead; needs CUDA")
    options = parser.parse_args()
    if options.quick:
        options.pairs = 1
    sizes = (options.sizes or ("4m" if options.quick else "4m,89m")).split(",")
    wanted = ["gpu"] if options.gpu else [name for name in options.only.split(",") if name] or series_of(sizes)
    prepare_data()
    bench = Bench(options, Budget(options.budget_minutes))
    rows: list[Row] = []
    found_curves: list[dict[str, Any]] = []
    for number, name in enumerate(wanted):
        print(f"{name}:", flush=True)
        if name == "curves":
            found_curves = curves(bench)
            continue
        left = sum(SHARES.get(other, 1) for other in wanted[number:])
        found = run_series(bench, name, bench.budget.pairs(SHARES.get(name, 1) / left, options.pairs))
        rows += found
        print(table(found), flush=True)
        save(options.quick, rows, found_curves)  # what is measured is kept, whatever comes next
    written = save(options.quick, rows, found_curves)
    print(report(written))
    return 0


def series_of(sizes: list[str]) -> list[str]:
    return [*(f"{kind}-{size}" for size in sizes for kind in ("sft", "preference")), "memory", "curves"]


def run_series(bench: Bench, name: str, going_on: Callable[[int], bool]) -> list[Row]:
    kind, _, size = name.partition("-")
    match kind:
        case "sft" if size in SFT_STEPS:
            return sft(bench, size, going_on)
        case "preference" if size in PAIRS:
            return preference(bench, size, going_on)
        case "memory":
            return memory(bench, going_on)
        case "gpu":
            return on_gpu(bench, going_on)
    raise SystemExit(f"There is no series '{name}'. Choose from: {', '.join(series_of(list(SFT_STEPS)))}.")


def prepare_data() -> None:
    """Once, in a process of its own: this one stays small and idle beside what it measures."""
    data = HOME / "data"
    if not (data / "ready.json").is_file():
        print("making rows and models", flush=True)
        made = data.with_name(".data.tmp")
        shutil.rmtree(made, ignore_errors=True)
        run_process(["benchmarks.training_data", str(made)], new_folder("data"), plain())
        shutil.rmtree(data, ignore_errors=True)
        made.rename(data)


def save(quick: bool, rows: list[Row], found_curves: list[dict[str, Any]]) -> dict[str, Any]:
    """The results file and the document; after a quick run only a file that nobody keeps."""
    file = (HOME if quick else RESULTS) / "training.json"
    if quick:
        file.unlink(missing_ok=True)
    written = write_results(file, rows, curves=found_curves)
    if not quick:
        DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8"), "training", report(written)), encoding="utf-8")
    return written


def report(results: dict[str, Any]) -> str:
    """What the document says of the results."""
    parts = [
        f"{results['machine']}; commit `{results['commit']}`; {results['date']}. "
        "A ratio above 1 is better for us; medians of pairs, range in brackets.",
        table(results["rows"]),
    ]
    if found := results.get("curves"):
        lines = ["| steps | ours | TRL |", "|---|--:|--:|"]
        lines += [f"| {one['steps']} | {one['ours']:.3f} | {_loss(one.get('peer'))} |" for one in found]
        parts += ["Mean training loss, SFT 4M, same rows and seed, each side's own order:", "\n".join(lines)]
    return "\n\n".join(parts)


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
