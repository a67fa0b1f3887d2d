"""One measurement as data: what both sides train, and how TRL is told to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["sft", "preference"]


@dataclass(frozen=True)
class Variant:
    """How TRL is set up; what is not here is the same for all."""

    label: str
    attention: Literal["sdpa", "eager"] = "sdpa"
    grouped: bool = False
    """Rows of like length together, batches shuffled. Handed in that way: on the few rows of a benchmark TRL's own
    `group_by_length` sorts no more than a couple of batches together, on a large data set it does this."""
    packing: Literal["no", "flat", "accumulated"] = "no"
    """`flat`: a step's packs end to end in one forward pass; `accumulated`: one pass a pack, so that attention meets
    only the pack's own tokens."""
    precompute: bool = False
    """Reference log-probabilities before training instead of in every step."""
    checkpointing: bool = False
    """Activations computed again in the backward pass. On by default in TRL; off here unless memory is measured."""
    tuned: bool = False
    """In the environment that our own trainer gives its runs: memory kept, waiting threads spin."""


@dataclass(frozen=True)
class Task:
    """What is trained; written as JSON for the peer's process."""

    kind: Kind
    model: Path
    rows: Path
    num_rows: int
    rows_per_step: int
    learning_rate: float
    epochs: int = 1
    beta: float = 0.1
    seed: int = 0
    max_length: int = 512
    bfloat16: bool = False
    """Matrix products in bfloat16; our trainer does so where the processor can, and says so."""
    lora_rank: int = 0
    """0: all weights are trained."""
    random_weights: bool = False
    """The model's folder has a configuration only."""
    variant: Variant = field(default_factory=lambda: Variant("default"))

    def read_rows(self) -> list[dict[str, Any]]:
        with self.rows.open(encoding="utf-8") as handle:
            return [json.loads(line) for line, _ in zip(handle, range(self.num_rows), strict=False)]

    @property
    def tokens(self) -> int:
        """Of all rows and epochs; a pair's prompt counts once for each answer, as it would be read without sharing."""
        return self.epochs * sum(sum(row["lengths"].values()) + shared(row) for row in self.read_rows())

    @property
    def laid_out_tokens(self) -> int:
        """The same with each prompt once."""
        return self.epochs * sum(sum(row["lengths"].values()) for row in self.read_rows())

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Task:
        values = json.loads(text)
        paths = {name: Path(values.pop(name)) for name in ("model", "rows")}
        return cls(**{**values, **paths, "variant": Variant(**values.pop("variant"))})


@dataclass(frozen=True)
class Measured:
    """What one process did."""

    tokens: int
    """Of the timed part, real tokens only."""
    seconds: float
    peak_bytes: int
    """Of the process, from its start to its end."""
    losses: list[float]
    """Of every step, the untimed ones included."""
    device_peak_bytes: int | None = None

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def shared(row: dict[str, Any]) -> int:
    return row["lengths"]["prompt"] if "rejected" in row else 0
