"""How a training run is started: its command and its environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vcllm.contracts.recipes import StageOrder
from vcllm.contracts.runs import TOKEN_VARIABLE
from vcllm.settings import Settings


def command(order: StageOrder, folder: Path, settings: Settings) -> list[str]:
    """One process; several devices or hosts would be launched from here."""
    return [sys.executable, "-m", "vcllm.training", str(folder), str(settings.models)]


def environment(order: StageOrder, token: int) -> dict[str, str]:
    """Threads are set before the libraries start; freed memory is kept, a step needs it again at once.

    A run that has the machine to itself lets waiting threads spin: a third faster than putting them to sleep.
    token: the fencing token by which the run knows whether its folder is still its own.
    """
    threads = {"OMP_NUM_THREADS": str(order.threads)} if order.threads else {"OMP_WAIT_POLICY": "ACTIVE"}
    memory = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
    return {**os.environ, **memory, **threads, TOKEN_VARIABLE: str(token)}
