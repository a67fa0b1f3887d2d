"""What a killed launcher may have left running: noted while it lives, ended before the next one starts.

A process is known by its id together with the moment it was created, so an id that was given to another
process since is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from vcllm.stores.models import write_atomic


def note(file: Path, processes: Iterable[psutil.Process]) -> None:
    """Remember these processes."""
    rows = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            rows.append([process.pid, process.create_time()])
    content = json.dumps(rows).encode()
    if not file.exists() or file.read_bytes() != content:
        write_atomic(file, content)


def end_noted(file: Path, patience_s: float = 12.0) -> int:
    """Wait for the noted processes to end by themselves, kill those that do not; how many were killed."""
    alive = [process for process in _noted(file) if process.is_running()]
    _, alive = psutil.wait_procs(alive, timeout=patience_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    file.unlink(missing_ok=True)
    return len(alive)


def _noted(file: Path) -> list[psutil.Process]:
    try:
        rows = [(int(pid), float(created)) for pid, created in json.loads(file.read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []  # never written, or only half: then nobody knows, and nobody is harmed
    found = []
    for pid, created in rows:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == created:
                found.append(process)
    return found
