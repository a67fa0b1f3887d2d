"""One training run as a process: an order and a dataset in, a finished version out, ready to be committed.

    python -m vcllm.training JOB_FOLDER MODEL_STORE
    python -m vcllm.training --processes 2 [--config FILE] JOB_FOLDER MODEL_STORE      DDP, or as the file says
    python -m vcllm.training --show JOB_FOLDER MODEL_STORE      only the first example, what is learned of it marked

The folder holds `order.json` and `dataset.jsonl`; the run adds what it learned its rows as, checkpoints and metrics,
then `out/` and `result.json` last. Progress goes to standard output, one JSON object a line. Started again after a
kill, it carries on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from vcllm.contracts.base import digest
from vcllm.contracts.manifests import Probe
from vcllm.contracts.problems import Problem
from vcllm.contracts.recipes import (
    AnyStage,
    AttackerStage,
    CptStage,
    CriticStage,
    ImportStage,
    Optim,
    PreferenceStage,
    PretrainStage,
    SftStage,
    StageOrder,
)
from vcllm.contracts.runs import (
    CHECKPOINTS,
    DATASET,
    FAILED,
    FAULT,
    FENCED,
    ORDER,
    OUT,
    RESULT,
    STOP,
    STOPPED,
    TOKEN_VARIABLE,
)
from vcllm.engine.engine import greedy_texts
from vcllm.engine.unsafe import Unsafe
from vcllm.stores.folders import Fenced, confirm_folder
from vcllm.stores.models import Damaged, ModelStore, NoSpace, translate_full_disk, write_atomic
from vcllm.training import stages
from vcllm.training.checkpoints import Checkpoints
from vcllm.training.critic import train_critic
from vcllm.training.kernels import fast_kernels
from vcllm.training.launch import die_with_launcher, end_as, launch
from vcllm.training.loop import Run, Stopped
from vcllm.training.meter import Report, peak_rss
from vcllm.training.models import Opened, open_model, threads, write_model
from vcllm.training.parallel import Parallel

CLAIMED = "claimed.json"
TRACKERS_VARIABLE = "VCLLM_TRACKERS"
"""Environment variable: experiment trackers by accelerate's names, separated by commas."""


def run_order(folder: Path, store: ModelStore, report: Report) -> dict[str, Any]:
    """Train what `folder` orders; returns what `result.json` holds. A finished run is not done twice."""
    confirm_folder(folder)
    result_file = folder / RESULT
    if result_file.is_file():
        return json.loads(result_file.read_text())
    # 1  what to do, from what
    started = time.monotonic()
    order = StageOrder.model_validate_json((folder / ORDER).read_text())
    torch.set_num_threads(threads(order.threads))
    opened, run = prepare(order, folder, store, report)
    # 2  train
    train(order, opened, run, store)
    # 3  write the version, and what it says to the probes
    if not run.parallel.is_main:
        return {}
    result = {
        "format": "full" if opened.base is None else "adapter",
        "base": opened.base,
        "probes": [probe.model_dump() for probe in finish(order, opened, folder)],
        "metrics": {**run.metrics, "seconds": round(time.monotonic() - started, 2), "peak_rss_bytes": peak_rss()},
    }
    confirm_folder(folder)
    write_atomic(result_file, json.dumps(result).encode())
    for leftover in (CHECKPOINTS, stages.ENCODED, stages.REFERENCES):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    return result


def prepare(order: StageOrder, folder: Path, store: ModelStore, report: Report) -> tuple[Opened, Run]:
    """The model to train, and everything a stage needs beside it."""
    random.seed(order.seed)
    np.random.seed(order.seed)
    torch.manual_seed(order.seed)
    trackers = [name for name in os.environ.get(TRACKERS_VARIABLE, "").split(",") if name]
    parallel = Parallel(trackers, folder)
    opened = open_model(order, store, read_rows(folder))
    if not parallel.sharded:  # a device may not hold what is to be spread over many
        opened.model.to(parallel.device)
    torch.manual_seed(order.seed + parallel.rank)  # the same weights, but not the same dropout
    optim = getattr(order.stage, "optim", None)
    confirm = partial(confirm_folder, folder)
    told = _told_to_stop()

    def must_stop() -> bool:
        confirm()  # every step, so that a run whose folder has a new holder ends before the new one needs its memory
        return told() or (folder / STOP).exists()

    run = Run(
        folder=folder,
        checkpoints=Checkpoints(folder / CHECKPOINTS, optim.keep_checkpoints if optim else 1, confirm),
        report=report,
        seed=order.seed,
        parallel=parallel,
        must_stop=must_stop,
        track=parallel.start_trackers(order.version, order.stage.model_dump(mode="json")) if trackers else None,
        notes={"order": digest(order.model_dump(mode="json")), "claimed": _claimed(folder)},
    )
    if optim is not None:
        _spare_memory(opened, optim)
    return opened, run


def train(order: StageOrder, opened: Opened, run: Run, store: ModelStore) -> None:
    """Hand the rows to the order's stage; leaves the model's own attention in place."""
    core = opened.core
    usual = core.config._attn_implementation
    with fast_kernels(opened.model, run.parallel.device):
        _train(order.stage, opened, run, store.root / f".{stages.REFERENCES}")
    run.parallel.end_trackers()
    core.set_attn_implementation(usual)


def _train(stage: AnyStage, opened: Opened, run: Run, references: Path) -> None:
    rows = read_rows(run.folder)
    match stage:
        case ImportStage():
            return
        case PretrainStage() | CptStage():
            stages.train_on_documents(opened, rows, stage.optim, run)
        case SftStage():
            stages.train_on_chats(opened, rows, stage.optim, run)
        case AttackerStage():
            stages.train_attacker(opened, rows, stage, run, references)
        case CriticStage():
            train_critic(opened, rows, stage, run)
        case PreferenceStage():
            stages.train_preference(opened, rows, stage, run, references)


def finish(order: StageOrder, opened: Opened, folder: Path) -> list[Probe]:
    """Write the version's files, all or none, and ask it the probes."""
    out, written = folder / OUT, folder / f".{OUT}.tmp-{os.environ.get(TOKEN_VARIABLE, 'by-hand')}"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    opened.model.eval()
    write_model(opened, written)
    probes = probe(order, opened)
    confirm_folder(folder)
    shutil.rmtree(out, ignore_errors=True)
    os.rename(written, out)
    return probes


def probe(order: StageOrder, opened: Opened) -> list[Probe]:
    """Greedy answers by which a server knows that it has loaded this very version; none for a classifier."""
    if order.stage.stage == "critic" or not order.probes:
        return []
    texts = greedy_texts(opened.model, opened.tokenizer, order.probes)
    return [Probe(prompt=prompt, text=text) for prompt, text in zip(order.probes, texts, strict=True)]


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The dataset, row by row."""
    with (folder / DATASET).open(encoding="utf-8") as handle:
        yield from map(json.loads, handle)


def show(folder: Path, store: ModelStore) -> str:
    """The first example as the stage would learn it; trains nothing."""
    order = StageOrder.model_validate_json((folder / ORDER).read_text())
    opened = open_model(order, store, read_rows(folder))
    return stages.show_first(order.stage, opened, read_rows(folder))


def _spare_memory(opened: Opened, optim: Optim) -> None:
    core = opened.core
    core.config.use_cache = False
    if optim.gradient_checkpointing:
        core.activation_checkpointing_enable({"use_reentrant": False})
        core.enable_input_require_grads()


def _claimed(folder: Path) -> str | None:
    """Which stream entries the dataset froze; a checkpoint belongs to those and no others."""
    file = folder / CLAIMED
    return digest(json.loads(file.read_text())) if file.is_file() else None


def _told_to_stop() -> Any:
    """Whether this process was sent SIGTERM since: it checkpoints before it goes."""
    told: list[int] = []
    with suppress(ValueError):  # not in the main thread, as under a test's server
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    return lambda: bool(told)


def main(argv: list[str]) -> int:
    given = _arguments().parse_args(argv)
    if given.processes is not None or given.config is not None:
        return end_as(launch(given.processes or 1, given.config, [str(given.folder), str(given.models)]))
    die_with_launcher()
    logging.disable_progress_bar()
    folder, models = given.folder, given.models
    if given.show:
        print(show(folder, ModelStore(models)))
        return 0

    def report(progress: dict[str, Any]) -> None:
        print(json.dumps(progress), flush=True)

    try:
        run_order(folder, ModelStore(models), report)
    except Stopped:
        return STOPPED
    except Fenced:
        return FENCED
    except Exception as error:
        if (sentence := what_to_do(error, folder)) is None:
            raise
        print(sentence, file=sys.stderr)
        with suppress(NoSpace):  # then its last words say it
            write_atomic(folder / FAULT, json.dumps({"message": sentence}, ensure_ascii=False).encode())
        return FAILED
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m vcllm.training", description="Train what a job's folder orders.")
    parser.add_argument("--show", action="store_true", help="only print the first example, what is learned marked")
    parser.add_argument("--processes", type=int, help="of this machine, one for each device")
    parser.add_argument("--config", type=Path, help="an accelerate configuration: FSDP, several machines")
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path)
    return parser


def what_to_do(error: Exception, folder: Path) -> str | None:
    """A sentence for the operator; None for an error that is ours, whose traceback says more."""
    if isinstance(error, Problem | NoSpace):
        return str(error)
    if isinstance(error, Damaged | Unsafe):
        return f"{error}. Import the model again, or start from another version."
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The device's memory is full. Set a lower micro_tokens in the stage's [optim], or gradient_checkpointing = "
            "true: the result stays the same."
        )
    fault = translate_full_disk(error, folder)
    return str(fault) if isinstance(fault, NoSpace) else None
