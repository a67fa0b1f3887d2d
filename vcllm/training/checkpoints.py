"""Checkpoints of a running stage: written beside, hashed, renamed; the last two are kept.

One holds the trained weights, the optimiser's state and torch's random state as safetensors, and the step as JSON.
The data needs no cursor of its own: the plan of batches follows from the seed and the step.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from vcllm.stores.models import fsync, sha256_file, translate_full_disk

KEPT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints below one folder."""

    def __init__(self, folder: Path, confirm: Callable[[], None] = lambda: None) -> None:
        """confirm: asked before anything appears or goes; what it raises keeps it as it is."""
        self.folder = folder
        self.confirm = confirm

    def save(self, step: int, model: Module, optimizer: Optimizer) -> None:
        """Durable once it returns; NoSpace leaves the earlier ones as they are."""
        self.confirm()
        tensors = {f"weight.{name}": value.detach() for name, value in trained(model)}
        tensors |= {f"optim.{key}": value for key, value in _optimizer_tensors(optimizer)}
        tensors["random"] = torch.get_rng_state()
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".step-{step:08d}.tmp-{uuid.uuid4().hex[:12]}"
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / TENSORS)
            digest = sha256_file(temporary / TENSORS)
            (temporary / STATE).write_text(json.dumps({"step": step, "sha256": digest}))
            for file in (temporary / TENSORS, temporary / STATE, temporary):
                fsync(file)
            self.confirm()
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            fsync(self.folder)
        except (OSError, SafetensorError) as error:
            raise translate_full_disk(error, target) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(old)

    def restore(self, model: Module, optimizer: Optimizer) -> int:
        """Load the newest whole checkpoint; the number of steps done, 0 when there is none."""
        for folder in reversed(self._steps()):
            if step := self._read(folder, model, optimizer):
                return step
        return 0

    def _read(self, folder: Path, model: Module, optimizer: Optimizer) -> int | None:
        try:
            state = json.loads((folder / STATE).read_text())
            whole = sha256_file(folder / TENSORS) == state["sha256"]
        except (OSError, ValueError, KeyError):
            whole = False
        if not whole:
            log.warning("checkpoint %s is damaged; using the one before", folder.name)
            return None
        tensors = load_file(folder / TENSORS)
        with torch.no_grad():
            for name, value in trained(model):
                value.copy_(tensors[f"weight.{name}"])
        _load_optimizer(optimizer, tensors)
        torch.set_rng_state(tensors["random"])
        return int(state["step"])

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def trained(model: Module) -> list[tuple[str, Tensor]]:
    """The parameters that move, by name; tied ones once."""
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _optimizer_tensors(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    state = optimizer.state_dict()["state"]
    return [(f"{index}.{key}", torch.as_tensor(value)) for index, row in state.items() for key, value in row.items()]


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
