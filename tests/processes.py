"""Looking at processes that may end while they are looked at."""

from __future__ import annotations

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """Its arguments; none for a process that has ended since it was listed."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
