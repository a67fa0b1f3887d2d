"""One training run as a process: an order and a dataset in, a finished version out, ready to be committed.

    python -m vcllm.training JOB_FOLDER MODEL_STORE

The folder holds `order.json` and `dataset.jsonl`; the run adds checkpoints, then `out/` and `result.json` last.
Progress goes to standard output, one JSON object a line. Started again after a kill, it carries on.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from vcllm.contracts.manifests import Probe
from vcllm.contracts.problems import Problem
from vcllm.contracts.recipes import (
    AttackerStage,
    CptStage,
    CriticStage,
    ImportStage,
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
from vcllm.stores.folders import Fenced, confirm_folder
from vcllm.stores.models import ModelStore, NoSpace, translate_full_disk, write_atomic
from vcllm.training import stages
from vcllm.training.checkpoints import Checkpoints
from vcllm.training.loop import Run, Stopped
from vcllm.training.models import Opened, open_model, threads, write_model

Report = Callable[[dict[str, Any]], None]


def run_order(folder: Path, store: ModelStore, report: Report) -> dict[str, Any]:
    """Train what `folder` orders; returns what `result.json` holds. A finished run is not done twice."""
    result_file = folder / RESULT
    if result_file.is_file():
        return json.loads(result_file.read_text())
    # 1  what to do, from what
    started = time.monotonic()
    order = StageOrder.model_validate_json((folder / ORDER).read_text())
    rows = [json.loads(line) for line in (folder / DATASET).read_text().splitlines()]
    torch.manual_seed(order.seed)
    random.seed(order.seed)
    torch.set_num_threads(order.threads or threads())
    opened = open_model(order, store, rows)
    confirm = partial(confirm_folder, folder)

    def must_stop() -> bool:
        confirm()  # every step, so that a run whose folder has a new holder ends before the new one needs its memory
        return (folder / STOP).exists()

    run = Run(Checkpoints(folder / CHECKPOINTS, confirm), report, order.seed, must_stop, {"rows": len(rows)})
    # 2  train
    train(order, opened, rows, run, folder)
    # 3  write the version, and what it says to the probes
    out, written = folder / OUT, folder / f".{OUT}.tmp-{os.environ.get(TOKEN_VARIABLE, 'by-hand')}"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    opened.model.eval()
    write_model(opened, written)
    probes = probe(order, opened)
    confirm()
    shutil.rmtree(out, ignore_errors=True)
    os.rename(written, out)
    result = {
        "metrics": {
            **run.metrics,
            "seconds": round(time.monotonic() - started, 2),
            "peak_rss_bytes": peak_rss(),
        },
        "format": "full" if opened.base is None else "adapter",
        "base": opened.base,
        "probes": [probe.model_dump() for probe in probes],
    }
    confirm()
    write_atomic(result_file, json.dumps(result).encode())
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return result


def train(order: StageOrder, opened: Opened, rows: stages.Rows, run: Run, folder: Path) -> None:
    """Hand the rows to the order's stage."""
    model, tokenizer, stage = opened.model, opened.tokenizer, order.stage
    match stage:
        case ImportStage():
            return
        case PretrainStage() | CptStage():
            stages.train_language_model(model, tokenizer, rows, stage.optim, run)
        case SftStage() | AttackerStage():
            stages.train_on_answers(model, tokenizer, rows, stage.optim, run)
        case CriticStage():
            stages.train_critic(model, tokenizer, rows, stage, run)
        case PreferenceStage():
            reference = folder / "reference.safetensors"
            stages.train_preference(model, tokenizer, rows, stage, run, reference)


def probe(order: StageOrder, opened: Opened) -> list[Probe]:
    """Greedy answers by which a server knows that it has loaded this very version; none for a classifier."""
    if order.stage.stage == "critic" or not order.probes:
        return []
    texts = greedy_texts(opened.model, opened.tokenizer, order.probes)
    return [Probe(prompt=prompt, text=text) for prompt, text in zip(order.probes, texts, strict=True)]


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str]) -> int:
    folder, models = Path(argv[0]), Path(argv[1])
    logging.disable_progress_bar()

    def report(progress: dict[str, Any]) -> None:
        print(json.dumps(progress), flush=True)

    try:
        run_order(folder, ModelStore(models), report)
    except Stopped:
        return STOPPED
    except Fenced:
        return FENCED
    except (Problem, NoSpace, OSError, SafetensorError) as error:
        fault = translate_full_disk(error, folder)
        if not isinstance(fault, Problem | NoSpace):
            raise
        print(fault, file=sys.stderr)
        with suppress(NoSpace):  # then its last words say it
            write_atomic(folder / FAULT, json.dumps({"message": str(fault)}, ensure_ascii=False).encode())
        return FAILED
    return 0
