"""The optimiser loop every stage shares: plan, accumulate, clip, step, report, checkpoint.

What a step computes is the learner's; the loop knows no loss. A killed run that is started again ends with the very
bytes of an uninterrupted one on the same processor.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Optim
from vcllm.training.batches import Plan, Rows, make_batch, share
from vcllm.training.checkpoints import Checkpoints, Saved
from vcllm.training.corpus import Corpus
from vcllm.training.learner import Learner, Totals
from vcllm.training.meter import Meter, Report
from vcllm.training.parallel import Parallel, Track
from vcllm.training.state import Average, collect, num_trained, restore, trained

METRICS = "metrics.jsonl"

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Somebody asked the run to stop; its checkpoint is written."""


@dataclass
class Run:
    """Where a stage reports and saves, with whom it trains, and whether it shall go on."""

    folder: Path
    checkpoints: Checkpoints
    report: Report
    seed: int
    parallel: Parallel
    must_stop: Callable[[], bool] = lambda: False
    """Asked after every step."""
    track: Track | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """Goes into every checkpoint's state; a checkpoint with other notes is not this run's."""
    metrics: dict[str, Any] = field(default_factory=dict)


def optimise(learner: Learner, corpus: Corpus, optim: Optim, run: Run, totals: Callable[[Rows], Totals]) -> None:
    """Train the learner's model in place. totals: what a step's sums are divided by, from its rows."""
    # 1  what to do, with what
    plan = Plan(corpus.lengths, optim, run.seed)
    parallel = run.parallel
    # Sharding takes a module apart for good: the learner stays whole, to be calibrated and written.
    trainee = (copy.deepcopy(learner) if parallel.sharded else learner).to(parallel.device)
    if num_trained(learner) == 0:
        raise BadRequest("Nothing would be trained: every weight is frozen. Check lora.target_modules of the recipe.")
    if optim.ema_decay is not None and parallel.sharded:
        raise BadRequest("ema_decay does not work with sharded weights (FSDP) yet. Leave it out, or use DDP.")
    module, optimizer = parallel.prepare(trainee, make_optimizer(trainee, optim))
    average = Average(trainee, optim.ema_decay)
    # 2  where an earlier process stopped
    done, smoothed = 0, None
    if (saved := _own_checkpoint(run)) is not None:
        restore(saved, parallel, module, optimizer, average)
        done, smoothed = saved.step, saved.state["loss"]
    meter = _meter(run, plan.num_steps, done, smoothed)
    last_saved = time.monotonic()
    module.train()
    # 3  steps
    for step in range(done, plan.num_steps):
        rows = plan.rows(step)
        figures = _step(module, optimizer, corpus, rows, totals(rows), optim, run, learning_rate(optim, step, plan))
        average.update(trainee)
        if meter is not None:
            meter.tick(int(corpus.lengths[rows].sum()), figures)
        if step + 1 == plan.num_steps:
            break
        stop, due = parallel.from_main((run.must_stop(), time.monotonic() - last_saved > optim.checkpoint_every_s))
        if stop or due:
            _save(step + 1, module, optimizer, average, meter, run)
            last_saved = time.monotonic()
        if stop:
            raise Stopped
    # 4  the end is a checkpoint, too: what follows (calibration, writing) may be cut off
    if done < plan.num_steps:
        _save(plan.num_steps, module, optimizer, average, meter, run)
    if optim.publish == "average":
        average.copy_into(trainee)
    if parallel.sharded:
        parallel.copy_whole(module, optimizer, learner)
    if meter is not None:
        meter.flush()
        run.metrics |= meter.summary()


def _own_checkpoint(run: Run) -> Saved | None:
    """The newest of this order and these rows; those of others are cleared away, as they would be taken for newer."""
    saved = run.checkpoints.newest()
    run.parallel.wait()
    if saved is None or saved.state.get("notes") == run.notes:
        return saved
    log.warning("The checkpoints found are of another order or other rows; training starts from the beginning.")
    if run.parallel.is_main:
        run.checkpoints.clear()
    return None


def _meter(run: Run, num_steps: int, done: int, smoothed: float | None) -> Meter | None:
    """Only the main process counts and speaks."""
    if not run.parallel.is_main:
        return None
    meter = Meter(run.report, num_steps, done, run.folder / METRICS, run.track)
    meter.loss = smoothed
    return meter


def _step(
    module: Module,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    rows: Rows,
    totals: Totals,
    optim: Optim,
    run: Run,
    rate: float,
) -> dict[str, float]:
    """One optimiser step over a step's rows, in as many micro-batches as memory asks for."""
    parallel = run.parallel
    most_tokens, spread = optim.micro_tokens or math.inf, parallel.plain(module).body.spread
    micro_batches = share(rows, corpus.lengths, parallel.world, parallel.rank, most_tokens, spread)
    sums: dict[str, torch.Tensor] = {}
    for number, micro in enumerate(micro_batches):
        empty = len(micro) == 0  # others still have rows: take part with one that counts for nothing
        batch = make_batch(corpus, rows[:1] if empty else micro, parallel.device)
        with parallel.micro_batch(module, last=number + 1 == len(micro_batches)):
            loss = module(batch, totals)
            parallel.backward(loss * 0 if empty else loss)
        if not empty:
            _add(sums, {"loss": loss.detach(), **parallel.plain(module).figures})
    norm = parallel.clip(module, optim.clip_norm)
    figures = _averages(parallel.sum(sums), totals)
    _refuse_unusable(figures["loss"], norm, corpus, rows)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**figures, "grad_norm": norm, "learning_rate": rate}


def _refuse_unusable(loss: float, norm: float, corpus: Corpus, rows: Rows) -> None:
    """Stop before a step that would spoil the weights, or that would change none."""
    lines = corpus.rows["line"][rows]
    shown = ", ".join(str(line) for line in sorted(lines)[:8]) + (" and others" if len(lines) > 8 else "")
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise BadRequest(
            f"The loss is not a number any more (loss {loss}, gradient norm {norm}) at rows {shown} of the dataset. "
            "Training stopped before this step and the checkpoints of earlier ones are kept: lower the learning rate, "
            "or look at those rows."
        )
    if norm == 0 and loss != 0:
        raise BadRequest(
            f"No gradient reaches the trained weights at rows {shown} of the dataset: nothing would be learned. "
            "Check lora.target_modules and the weights of the rows."
        )


def _averages(sums: dict[str, float], totals: Totals) -> dict[str, float]:
    """Means over tokens and pairs, from a step's sums."""
    pairs = sums.pop("num_pairs", 0.0)
    loss, nll = sums.pop("loss"), sums.pop("nll", None)
    figures = {"loss": loss} | ({} if nll is None else {"nll": nll / totals.weight})
    return figures | {name: value / max(1.0, pairs) for name, value in sums.items()}


def _add(sums: dict[str, torch.Tensor], figures: dict[str, torch.Tensor]) -> None:
    for name, value in figures.items():
        sums[name] = sums[name] + value if name in sums else value


def _save(step: int, module: Module, optimizer: Any, average: Average, meter: Meter | None, run: Run) -> None:
    tensors = collect(run.parallel, module, optimizer, average)
    if any(name.startswith("weight.") and not bool(value.isfinite().all()) for name, value in tensors.items()):
        raise BadRequest(
            f"After step {step} the weights are not numbers any more. The checkpoints of earlier steps are kept: lower "
            "the learning rate."
        )
    if meter is not None:
        meter.flush()
        run.checkpoints.save(step, tensors, {"loss": meter.loss, "notes": run.notes})
    run.parallel.wait()


def make_optimizer(module: Module, optim: Optim) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [value for _, value in trained(module)],
        lr=optim.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=optim.weight_decay,
        fused=True,
    )


def learning_rate(optim: Optim, step: int, plan: Plan) -> float:
    """Linear warm-up, then cosine to a fiftieth, or constant."""
    num_steps = plan.num_steps
    warmup = max(1, round(optim.warmup_share * num_steps))
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    return optim.learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


def totals_of(corpus: Corpus, rows: Rows) -> Totals:
    """Weighted learned tokens (of chosen answers where rows fork), and the number of pairs."""
    table = corpus.rows[rows]
    weight = float((table["weight"].astype(np.float64) * table["learned"]).sum())
    return Totals(weight=max(weight, 1e-6), pairs=float(max(1, int(corpus.forked[rows].sum()))))
