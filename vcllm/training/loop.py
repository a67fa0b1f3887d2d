"""The optimiser loop every stage shares: plan, accumulate, clip, step, report, checkpoint.

What a step computes is the stage's `objective`; the loop knows no loss. A killed run that is started again ends with
the very bytes of an uninterrupted one on the same processor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vcllm.contracts.recipes import Optim
from vcllm.training.batches import plan_epoch
from vcllm.training.checkpoints import Checkpoints, trained

PROGRESS_EVERY_S = 1.0

Report = Callable[[dict[str, Any]], None]


Objective = Callable[[Sequence[int]], tuple[Tensor, dict[str, float]]]
"""What one optimiser step minimises: from the step's rows to a scalar to differentiate and figures worth showing."""


class Stopped(Exception):
    """Somebody asked the run to stop; its checkpoint is written."""


@dataclass
class Run:
    """Where a stage reports and saves, and whether it shall go on."""

    checkpoints: Checkpoints
    report: Report
    seed: int
    must_stop: Callable[[], bool] = lambda: False
    """Asked after every step."""
    metrics: dict[str, Any] = field(default_factory=dict)


def optimise(model: Module, lengths: list[int], objective: Objective, optim: Optim, run: Run) -> None:
    """Train `model` in place. `lengths[i]`: tokens of row i, for batching by length."""
    plan = plan_steps(lengths, optim, run.seed)
    optimizer = make_optimizer(model, optim)
    done = run.checkpoints.restore(model, optimizer)
    meter = Meter(run.report, len(plan), done)
    last_saved = time.monotonic()
    model.train()
    for step in range(done, len(plan)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, len(plan))
        with autocast(_device(model)):
            loss, figures = objective(plan[step])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([value for _, value in trained(model)], optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.tick(sum(lengths[row] for row in plan[step]), float(loss.detach()), float(norm), figures)
        if step + 1 == len(plan):
            break
        stop = run.must_stop()
        if stop or time.monotonic() - last_saved > optim.checkpoint_every_s:
            run.checkpoints.save(step + 1, model, optimizer)
            last_saved = time.monotonic()
        if stop:
            raise Stopped
    run.checkpoints.save(len(plan), model, optimizer)
    run.metrics |= meter.summary()


def plan_steps(lengths: list[int], optim: Optim, seed: int) -> list[list[int]]:
    """Rows of every optimiser step, over all epochs; a fraction of an epoch is a prefix of it."""
    plan: list[list[int]] = []
    for epoch in range(math.ceil(optim.epochs)):
        batches = plan_epoch(lengths, optim.batch_tokens, seed, epoch)
        share = min(1.0, optim.epochs - epoch)
        plan.extend(batches[: max(1, round(share * len(batches)))])
    return plan[: optim.max_steps] if optim.max_steps else plan


def make_optimizer(model: Module, optim: Optim) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [value for _, value in trained(model)],
        lr=optim.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=optim.weight_decay,
        fused=True,
    )


def learning_rate(optim: Optim, step: int, num_steps: int) -> float:
    """Linear warm-up, then cosine to a fiftieth, or constant."""
    warmup = max(1, round(optim.warmup_share * num_steps))
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    return optim.learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


class Meter:
    """Progress about once a second: step, tokens per second, time left, loss."""

    def __init__(self, report: Report, num_steps: int, done: int) -> None:
        self.report, self.num_steps, self.step, self.first = report, num_steps, done, done
        self.started = self.last = time.monotonic()
        self.tokens = 0
        self.loss: float | None = None

    def tick(self, tokens: int, loss: float, norm: float, figures: dict[str, float]) -> None:
        self.step += 1
        self.tokens += tokens
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        now = time.monotonic()
        if now - self.last >= PROGRESS_EVERY_S or self.step == self.num_steps:
            self.last = now
            per_step = (now - self.started) / (self.step - self.first)
            self.report(
                {
                    "step": self.step,
                    "steps": self.num_steps,
                    "tokens_per_s": round(self.tokens / (now - self.started)),
                    "eta_s": round(per_step * (self.num_steps - self.step), 1),
                    "loss": round(self.loss, 4),
                    "grad_norm": round(norm, 3),
                    **{name: round(value, 4) for name, value in figures.items()},
                }
            )

    def summary(self) -> dict[str, Any]:
        elapsed = max(1e-9, time.monotonic() - self.started)
        return {
            "steps": self.num_steps,
            "loss": self.loss,
            "train_seconds": round(elapsed, 2),
            "tokens_per_s": round(self.tokens / elapsed),
        }


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it; elsewhere emulation would be five times slower than float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _device(model: Module) -> torch.device:
    return next(model.parameters()).device
