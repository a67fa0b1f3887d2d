"""What a run says of itself: progress about once a second, a line of metrics for every step, trackers if configured."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vcllm.stores.models import write_atomic
from vcllm.training.parallel import Track

PROGRESS_EVERY_S = 1.0
SMOOTHING = 0.95

Report = Callable[[dict[str, Any]], None]


class Meter:
    """Counts steps and tokens; knows how long the rest will take."""

    def __init__(self, report: Report, num_steps: int, done: int, file: Path, track: Track | None = None) -> None:
        self.report, self.num_steps, self.step, self.first = report, num_steps, done, done
        self.track = track
        self.started = self.last = self.ticked = time.monotonic()
        self.tokens = 0
        self.loss: float | None = None
        self.file = file
        self._lines: list[str] = []
        forget_after(file, done)

    def tick(self, tokens: int, figures: dict[str, float]) -> None:
        """One step is done; `figures` has its loss, gradient norm, learning rate and whatever the stage shows."""
        self.step += 1
        self.tokens += tokens
        loss = figures["loss"]
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        now = time.monotonic()
        seconds, self.ticked = now - self.ticked, now
        line = {"step": self.step, "tokens": tokens, "seconds": round(seconds, 4), **_rounded(figures)}
        self._lines.append(json.dumps(line))
        if self.track is not None:
            self.track(figures, self.step)
        if now - self.last >= PROGRESS_EVERY_S or self.step == self.num_steps:
            self.last = now
            self.flush()
            self.report({**self._progress(now), **_rounded({**figures, "loss": self.loss})})

    def flush(self) -> None:
        """Put the lines of metrics where a reader finds them."""
        if self._lines:
            with self.file.open("a") as handle:
                handle.write("".join(f"{line}\n" for line in self._lines))
            self._lines.clear()

    def summary(self) -> dict[str, Any]:
        elapsed = max(1e-9, time.monotonic() - self.started)
        return {
            "steps": self.num_steps,
            "loss": self.loss,
            "train_seconds": round(elapsed, 2),
            "tokens_per_s": round(self.tokens / elapsed),
        }

    def _progress(self, now: float) -> dict[str, Any]:
        per_step = (now - self.started) / (self.step - self.first)
        return {
            "step": self.step,
            "steps": self.num_steps,
            "tokens_per_s": round(self.tokens / max(1e-9, now - self.started)),
            "eta_s": round(per_step * (self.num_steps - self.step), 1),
            "memory_bytes": memory(),
        }


def forget_after(file: Path, step: int) -> None:
    """Drop the metrics of steps that will be done again."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # cut off by a kill
    write_atomic(file, "".join(f"{line}\n" for line in kept).encode())


def memory() -> int:
    """Peak bytes: of the device's allocator where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_rss()


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    """Six significant digits; JSON has no word for what is not finite."""
    return {name: float(f"{value:.6g}") for name, value in figures.items() if math.isfinite(value)}
