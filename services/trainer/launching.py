"""How a training run is started: its command and its environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import StageOrder
from vcllm.settings import Settings


def command(order: StageOrder, folder: Path, settings: Settings) -> list[str]:
    """One process, or as many as the recipe's `[launch]` asks for.

    BadRequest when the configuration that it names is not beside the recipes.
    """
    spread: list[str] = []
    if order.launch is not None:
        spread += ["--processes", str(order.launch.processes)]
    if order.launch is not None and order.launch.config is not None:
        file = settings.recipes / order.launch.config
        if not file.is_file():
            raise BadRequest(f"launch.config: there is no '{file.name}' in {settings.recipes}. Put it there.")
        spread += ["--config", str(file)]
    return [sys.executable, "-m", "vcllm.training", *spread, str(folder), str(settings.models)]


def environment(order: StageOrder) -> dict[str, str]:
    """Threads are set before the libraries start; freed memory is kept, a step needs it again at once.

    A run that has the machine to itself lets waiting threads spin: a third faster than putting them to sleep.
    """
    threads = {"OMP_NUM_THREADS": str(order.threads)} if order.threads else {"OMP_WAIT_POLICY": "ACTIVE"}
    memory = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
    return {**os.environ, **memory, **threads}
