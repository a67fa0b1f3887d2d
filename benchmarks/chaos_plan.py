"""The kill matrix: every service in every phase of a job with both signals, spread over as few runs as can be.

A run is one pipeline, and kills one thing in each of its phases; from run to run the services move on by one phase, so
that no service is killed twice in a run. After two rounds of services, one for each signal, every cell was there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Signal = Literal["SIGKILL", "SIGTERM"]
SIGNALS: tuple[Signal, ...] = ("SIGKILL", "SIGTERM")
SERVICES = (
    "attacker",
    "actor",
    "critic",
    "trainer-rollouts",
    "trainer-training",
    "training run",
    "trainer-reaper",
    "gateway",
    "redis",
)
"""As the launcher calls them; `training run` is the subprocess that computes."""
PHASES = ("queued", "base", "sft", "critic", "attacker", "playing", "training", "commit", "report", "idle")
"""`base` to `attacker`: while that version is trained. `playing`, `training`, `commit`: of a round, `commit` from its
candidate's appearance in the model store to the gate's word. `idle`: the job has ended, its version is served."""
TRAINING_PHASES = frozenset({"base", "sft", "critic", "attacker", "training"})
"""In which a training run is at work for sure."""


@dataclass(frozen=True, order=True)
class Cell:
    """One kill."""

    service: str
    phase: str
    signal: Signal

    def __str__(self) -> str:
        return f"{self.service}:{self.phase}:{self.signal}"

    @property
    def exists(self) -> bool:
        """There is something to kill."""
        return self.service != "training run" or self.phase in TRAINING_PHASES


Run = tuple[Cell, ...]
"""At most one cell for each phase."""


def plan(seed: int = 0) -> list[Run]:
    """Every cell that exists, each once; seed: which service begins with which phase."""
    services = list(SERVICES)
    random.Random(seed).shuffle(services)
    runs = []
    for signal_shift in range(len(SIGNALS)):
        for shift in range(len(services)):
            cells = (
                Cell(services[(i + shift) % len(services)], phase, SIGNALS[(i + shift + signal_shift) % len(SIGNALS)])
                for i, phase in enumerate(PHASES)
            )
            runs.append(tuple(cell for cell in cells if cell.exists))
    return runs


def parse_cell(text: str) -> Cell:
    """`SERVICE:PHASE:SIGNAL`; ValueError, with what there is, for anything else."""
    service, _, rest = text.partition(":")
    phase, _, signal = rest.partition(":")
    for cell in cells():
        if (cell.service, cell.phase, cell.signal) == (service, phase, signal):
            return cell
    raise ValueError(
        f"'{text}' is no cell. Write SERVICE:PHASE:SIGNAL; services: {', '.join(SERVICES)};"
        f" phases: {', '.join(PHASES)}; signals: {', '.join(SIGNALS)}."
        f" A training run can be killed in {', '.join(sorted(TRAINING_PHASES))} only."
    )


def cells() -> Sequence[Cell]:
    """Of the whole matrix, those that exist."""
    every = (Cell(service, phase, signal) for service in SERVICES for phase in PHASES for signal in SIGNALS)
    return [cell for cell in every if cell.exists]
