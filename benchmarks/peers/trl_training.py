"""TRL's side of the training benchmark: one run in a process of its own.

    python -m benchmarks.peers.trl_training TASK.json      the last line it prints is what it measured

The settings are those of `order` in `benchmarks.training`: rows, rows a step, learning rate, AdamW, clipping. All else
is TRL's default or the task's variant.
"""

from __future__ import annotations

import json
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.random_weights import random_weights
from benchmarks.training_task import Task

Row = dict[str, Any]


class Clock(TrainerCallback):
    """Real tokens, loss and time of every step; and the time of a reference pass before them."""

    def __init__(self) -> None:
        self.reference_s = 0.0
        self.tokens, self.loss = 0, 0.0
        self.steps: list[Row] = []
        self.last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        _wait()
        now = time.perf_counter()
        self.steps.append({"tokens": self.tokens, "seconds": now - self.last, "loss": self.loss})
        self.tokens, self.loss, self.last = 0, 0.0, now


class Timed:
    """Mixed into a trainer: tells its clock what it does."""

    clock: Clock

    def training_step(self, model: Any, inputs: Row, *rest: Any, **more: Any) -> Any:
        seen = inputs.get("attention_mask")
        self.clock.tokens += int(inputs["position_ids"].numel() if seen is None else seen.sum())
        loss = super().training_step(model, inputs, *rest, **more)  # type: ignore[misc]
        self.clock.loss += float(loss)
        return loss

    def _precompute_ref_logps(self, *inputs: Any, **more: Any) -> Any:
        started = time.perf_counter()
        found = super()._precompute_ref_logps(*inputs, **more)  # type: ignore[misc]
        _wait()
        self.clock.reference_s += time.perf_counter() - started
        return found


class TimedSft(Timed, SFTTrainer):
    pass


class TimedDpo(Timed, DPOTrainer):
    pass


def run(task: Task, folder: Path) -> Row:
    """Train; what came of it: steps, reference_seconds, device_peak_bytes."""
    variant, on_gpu = task.variant, torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    with ExitStack() as stack:
        if task.random_weights:
            stack.enter_context(random_weights())
        dtype = torch.bfloat16 if task.lora_rank and on_gpu else torch.float32
        model = AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype, attn_implementation=variant.attention)
    rows = task.read_rows()
    if variant.grouped:
        rows = grouped(rows, task.rows_per_step, task.seed)
    common: Row = {
        "output_dir": str(folder),
        "per_device_train_batch_size": task.rows_per_step,
        "num_train_epochs": task.epochs,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": task.max_length,
        "bf16": task.bfloat16,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": variant.checkpointing,
        "train_sampling_strategy": "sequential" if variant.grouped else "random",
        "seed": task.seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    TimedSft.clock = TimedDpo.clock = clock = Clock()
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=task.lora_rank, lora_alpha=2 * task.lora_rank, target_modules="all-linear"
    )
    given: Row = {
        "model": model,
        "processing_class": tokenizer,
        "callbacks": [clock],
        "peft_config": lora if task.lora_rank else None,
    }
    if task.kind == "sft":
        arguments = SFTConfig(**(common | packing(task, rows)))
        trainer: Any = TimedSft(args=arguments, train_dataset=Dataset.from_list(list(map(as_chat, rows))), **given)
    else:
        arguments = DPOConfig(**common, beta=task.beta, precompute_ref_log_probs=variant.precompute)
        trainer = TimedDpo(args=arguments, train_dataset=Dataset.from_list(list(map(as_pair, rows))), **given)
    trainer.train()
    return {
        "steps": clock.steps,
        "reference_seconds": clock.reference_s,
        "device_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


def packing(task: Task, rows: list[Row]) -> Row:
    """Packs as long as the longest row may be, as many a step as hold the tokens of a step."""
    if task.variant.packing == "no":
        return {}
    tokens = sum(sum(row["lengths"].values()) for row in rows) / len(rows) * task.rows_per_step
    packs = max(1, round(tokens / task.max_length))
    at_once = packs if task.variant.packing == "flat" else 1
    return {
        "packing": True,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": packs // at_once,
    }


def grouped(rows: list[Row], at_once: int, seed: int) -> list[Row]:
    """Sorted by length and cut into batches, the batches shuffled."""
    ordered = sorted(rows, key=lambda row: sum(row["lengths"].values()))
    batches = [ordered[start : start + at_once] for start in range(0, len(ordered), at_once)]
    last = [batches.pop()] if len(batches[-1]) < at_once else []  # a short one in the middle would shift the others
    random.Random(seed).shuffle(batches)
    return [row for batch in batches + last for row in batch]


def as_chat(row: Row) -> Row:
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def as_pair(row: Row) -> Row:
    answers = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    return {"prompt": row["prompt"], **answers}


def _wait() -> None:
    """For what the device still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    file = Path(sys.argv[1])
    print(json.dumps(run(Task.from_json(file.read_text()), file.parent / "trl")))
