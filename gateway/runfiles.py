"""What training runs leave on the disk, read for whoever watches a job: checkpoints and the end of their logs.

The gateway only reads here; the folders belong to the trainer (`vcllm.contracts.runs`). Paths are made of roles and
version names that were checked when the job was made, never of what a request says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcllm.contracts.fine_tuning import FineTune
from vcllm.contracts.jobs import Checkpoint, JobRecord
from vcllm.contracts.recipes import StageOrder
from vcllm.contracts.runs import CHECKPOINTS, LOG
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore

STATE = "state.json"
MAX_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Run:
    """A training run of a job."""

    job: str
    order: StageOrder
    folder: Path


def run_of(record: JobRecord, settings: Settings) -> Run | None:
    """None: a pipeline, which has stages that run."""
    if record.kind == "pipeline":
        return None
    request = record.request
    order = FineTune.model_validate(request).order if record.kind == "fine_tune" else StageOrder.model_validate(request)
    return Run(record.id, order, settings.jobs / order.role / order.version)


def checkpoints_of(run: Run, models: ModelStore) -> Iterator[Checkpoint]:
    """States on disk that the run can go on from, oldest first, then the version where there is one."""
    for folder in sorted((run.folder / CHECKPOINTS).glob("step-*")):
        with suppress(OSError):  # the run that owns it makes room for newer ones
            yield _on_disk(run, folder)
    if models.has(run.order.role, run.order.version):
        yield _committed(run, models)


def _on_disk(run: Run, folder: Path) -> Checkpoint:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    except ValueError:
        state = {}
    loss = state.get("loss")
    return Checkpoint(
        id=folder.name,
        job=run.job,
        version=run.order.version,
        role=run.order.role,
        step=int(folder.name.removeprefix("step-")),
        committed=False,
        created=folder.stat().st_mtime,
        num_bytes=_size(folder),
        loss=float(loss) if isinstance(loss, int | float) else None,
    )


def _committed(run: Run, models: ModelStore) -> Checkpoint:
    manifest = models.manifest(run.order.role, run.order.version)
    steps, loss = manifest.metrics.get("steps"), manifest.metrics.get("loss")
    return Checkpoint(
        id=manifest.name,
        job=run.job,
        version=manifest.name,
        role=manifest.role,
        step=int(steps) if isinstance(steps, int | float) else None,
        committed=True,
        created=manifest.created,
        num_bytes=_size(models.path(manifest.role, manifest.name)),
        loss=float(loss) if isinstance(loss, int | float) else None,
    )


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


@dataclass(frozen=True)
class Piece:
    """Some of a log, and where the next piece begins."""

    text: str
    file: tuple[int, int] | None
    """Which file it was, by device and inode: a log that grows too large is put aside for a new one."""
    end: int


def log_tail(run: Run, num_lines: int) -> Piece:
    """The last lines, of the last `MAX_TAIL_BYTES` at most; empty before the run has written any."""
    with suppress(FileNotFoundError), (run.folder / LOG).open("rb") as handle:
        stat = os.fstat(handle.fileno())
        handle.seek(max(0, stat.st_size - MAX_TAIL_BYTES))
        content = handle.read(MAX_TAIL_BYTES)
        lines = content.split(b"\n")
        kept = lines[-num_lines - (lines[-1] == b"") :]
        return Piece(b"\n".join(kept).decode(errors="replace"), (stat.st_dev, stat.st_ino), handle.tell())
    return Piece("", None, 0)


def log_after(run: Run, piece: Piece) -> Piece:
    """What whole lines were written since; from the beginning where the log is another file by now."""
    with suppress(FileNotFoundError), (run.folder / LOG).open("rb") as handle:
        stat = os.fstat(handle.fileno())
        file = (stat.st_dev, stat.st_ino)
        start = piece.end if file == piece.file and piece.end <= stat.st_size else 0
        handle.seek(start)
        whole, end, _ = handle.read(MAX_TAIL_BYTES).rpartition(b"\n")
        return Piece((whole + end).decode(errors="replace"), file, start + len(whole) + len(end))
    return Piece("", piece.file, piece.end)
