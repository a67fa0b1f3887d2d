"""How much memory the fleet takes at its peak, measured from the launcher."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from vcllm.stores.models import write_atomic


class MemoryPeak:
    """The highest sum over a set of processes, kept in a file for the report.

    The file says `peak_pss_bytes` (a page shared by n processes counts 1/n in each; the honest sum),
    `peak_rss_bytes` (shared pages count fully in each) and when the peak was, in Unix seconds.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._peak = {"pss": 0, "rss": 0}

    def sample(self, processes: Iterable[psutil.Process]) -> None:
        """Measure once; write the file when the peak has risen."""
        now = {"pss": 0, "rss": 0}
        for process in processes:
            try:
                memory = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            now["rss"] += memory.rss
            now["pss"] += getattr(memory, "pss", memory.rss)  # PSS is known on Linux only
        if any(now[kind] > self._peak[kind] for kind in now):
            self._peak = {kind: max(now[kind], self._peak[kind]) for kind in now}
            peaks = {f"peak_{kind}_bytes": value for kind, value in self._peak.items()}
            write_atomic(self.file, json.dumps({**peaks, "at": time.time()}).encode())
