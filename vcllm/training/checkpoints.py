"""Checkpoints on disk: written beside, hashed, renamed; the last few are kept, and a damaged one is passed over.

A checkpoint is a bag of named tensors (safetensors) and a small state (JSON); what they mean is the loop's business.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vcllm.stores.models import fsync, sha256_file, translate_full_disk

TENSORS, STATE = "tensors.safetensors", "state.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read back; every hash has been compared."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints below one folder."""

    def __init__(self, folder: Path, keep: int = 2, confirm: Callable[[], None] = lambda: None) -> None:
        """confirm: asked before anything appears or goes; what it raises keeps it as it is."""
        self.folder, self.keep, self.confirm = folder, keep, confirm

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Durable once it returns; NoSpace leaves the earlier ones as they are."""
        self.confirm()
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".step-{step:08d}.tmp-{uuid.uuid4().hex[:12]}"
        try:
            temporary.mkdir(parents=True)
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / TENSORS)
            digest = sha256_file(temporary / TENSORS)
            (temporary / STATE).write_text(json.dumps({**state, "step": step, "sha256": digest}))
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
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Saved | None:
        """The newest whole checkpoint; the log names every damaged one that was passed over."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in reversed(self._steps()):
            if (saved := _read(folder)) is not None:
                return saved
            log.warning("Checkpoint %s is damaged; the one before is used.", folder.name)
        return None

    def clear(self) -> None:
        """Forget all of them."""
        for folder in self._steps():
            shutil.rmtree(folder, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _read(folder: Path) -> Saved | None:
    try:
        state = json.loads((folder / STATE).read_text())
        if sha256_file(folder / TENSORS) != state["sha256"]:
            return None
        return Saved(int(state["step"]), load_file(folder / TENSORS), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
