"""One adversarial round in figures: what was asked, what fell to which filter, what came of it, how long it took."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcllm.contracts.archive import ArchiveFigures
from vcllm.contracts.base import Contract
from vcllm.contracts.manifests import Role

Phase = Literal[
    "attack",
    "answer",
    "critique",
    "compare",
    "pair",
    "train_actor",
    "train_attacker",
    "train_critic",
    "measure",
    "gate",
]
"""What a round's time goes into. Phases of a round prepared while another trained count where the work was done."""


class PairCounts(Contract):
    """What became of the queries that were judged."""

    judged: int = Field(default=0, ge=0)
    """Queries with answers that the Critic saw."""
    kept: int = Field(default=0, ge=0)
    """Pairs that went to the stream."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Reason to number: `no_good_answer`, `votes_differ`, `tie`, `contaminated`, `cell_full`, ..."""
    sources: dict[str, int] = Field(default_factory=dict)
    """Of those kept, by `Pair.source`."""
    reviews: int = Field(default=0, ge=0)
    """Answers put before people."""


class Steering(Contract):
    """What the controller decides for a round; pure figures in, this out."""

    benign_share: float = Field(ge=0, lt=1)
    """Share of the goals that wrap a harmless question."""
    look_alike_share: float = Field(default=0.0, ge=0, le=1)
    """Share of those that mention a claim, too."""
    explore: float = Field(default=0.15, gt=0)
    """Weight of a cell that never won, beside its success rate: higher spreads the goals."""
    trains: tuple[Role, ...] = ("actor", "attacker")
    """Which roles learn from the round."""
    moves: dict[str, float] = Field(default_factory=dict)
    """Dial, such as `benign_share`, to the natural logarithm of the factor it was last moved by: what the controller
    remembers, so that a dial which has to turn back moves less far."""
    reason: str = ""
    """One sentence on why it differs from the round before."""


class RoundWork(Contract):
    """How a round was worked, beside what it measured."""

    attacker: str = ""
    actor: str = ""
    """The version that was attacked, and that the candidate was trained from."""
    critic: str = ""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Attacks that fell to a filter, by reason."""
    pairs: PairCounts = PairCounts()
    steering: Steering | None = None
    archive: ArchiveFigures | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    """`Phase` to seconds."""
    pairs_per_minute: dict[str, float] = Field(default_factory=dict)
    """Approved pairs per minute of each role's work: `attacker`, `actor`, `critic`; `round`: of the whole round."""
    num_ahead: int = Field(default=0, ge=0)
    """Queries prepared while the version before was still training."""
    stop: str = ""
    """Why no further round follows; empty: one may."""
