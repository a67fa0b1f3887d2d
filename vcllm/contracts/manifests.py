"""The manifest of a model version: what it is made of, what it was trained on, and how to recognise it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vcllm.contracts.base import Contract, Name

Role = Literal["actor", "attacker", "critic"]
ROLES: tuple[Role, ...] = ("actor", "attacker", "critic")
Alias = Literal["current", "candidate", "previous"]
Decision = Literal["promote", "reject", "hold"]
"""What becomes of a candidate; `hold`: the figures do not settle it, a person decides."""
PROBE_TOKENS = 32
"""Length of the greedy texts that probes record."""


class Probe(Contract):
    """A prompt and the greedy text the trainer saw; a server that says otherwise has loaded something else."""

    prompt: str
    text: str


class GateCheck(Contract):
    """One condition of the gate."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str
    open: bool = False
    """Not settled: nothing is proven against the candidate, while the data would allow for a loss that matters.
    `passed` is true then, unless nothing could be scored."""


class GateVerdict(Contract):
    """Whether a version may be promoted, and on what grounds."""

    passed: bool
    """It is promoted; false also for one that is held."""
    checks: list[GateCheck]
    decision: Decision | None = None
    """None in what was written before there were three: `promote` when it passed, else `reject`."""


class Manifest(Contract):
    """Written once, beside the weights."""

    version: Literal[1] = 1
    role: Role
    name: Name
    lineage: Name
    stage: str
    round: int = 0
    parent: str | None = None
    """The version the training started from."""
    base: str | None = None
    """For an adapter: the version or model its weights sit on; None: the weights are complete."""
    format: Literal["full", "adapter"]
    files: dict[str, str]
    """File name to hex sha256."""
    recipe: dict[str, Any]
    recipe_hash: str
    charter: str
    """Content hash of the charter it was trained under."""
    dataset: str
    """sha256 of the dataset snapshot."""
    pairs: list[str] = Field(default_factory=list)
    """Ids of the approved pairs this version used for the first time in its lineage."""
    replayed: list[str] = Field(default_factory=list)
    """Ids of pairs of earlier rounds that it saw again."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    probes: list[Probe] = Field(default_factory=list)
    token: int
    """Fencing token of the worker that committed it."""
    job: str
    trace: str | None = None
    """Id of the trace it was made in: of the request that led to it, and in its new pairs. None in older manifests."""
    created: float
