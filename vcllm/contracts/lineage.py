"""Where a version comes from, and where a pair went: reply -> version -> pairs -> critiques -> attacker, and back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcllm.contracts.attacks import Cell, ItemKind
from vcllm.contracts.base import Contract, Name
from vcllm.contracts.gates import Gated
from vcllm.contracts.manifests import Role
from vcllm.contracts.pairs import Pair, Source

PREFIX_LENGTH = 8
"""Hex digits of a pair's id that name it, where no other of its lineage begins alike."""


class PairStamp(Contract):
    """A pair in one line: who made it and what the Critic said of its sides. The whole is in its `PairTrace`."""

    id: str
    kind: ItemKind
    cell: Cell
    source: Source
    attacker: str
    actor: str
    """Who wrote its answers."""
    critic: str
    chosen_score: float | None
    """The Critic's, in [0, 1]."""
    rejected_score: float | None
    """None, too, where there is no other side."""
    trace: str
    replayed_by: list[Name] = Field(default_factory=list)
    """Later versions that saw it again, oldest first."""


class PairMakers(Contract):
    """Pairs of a version that the same versions made in the same way."""

    attacker: str
    actor: str
    critic: str
    source: Source
    num_pairs: int = Field(ge=1)


class VersionTrace(Contract):
    """`GET /v1/lineage/versions/{role}/{version}`: from a version to everything it was made of."""

    role: Role
    name: Name
    lineage: Name
    stage: str
    """`sft`, `preference`, ..."""
    round: int
    """0: before the first."""
    created: float
    """Unix seconds."""
    parents: list[str]
    """`role/version` it was trained from, what that was trained from, and so on; the last may no longer be there."""
    recipe_hash: str
    charter: str
    dataset: str
    """sha256 of the snapshot it was trained on."""
    job: str
    trace: str | None = None
    """Of the request that led to it; None where that is not known."""
    gate: Gated | None = None
    """None: no gate was asked, as before the first round."""
    makers: list[PairMakers] = Field(default_factory=list)
    """Of the pairs that can be found, most pairs first."""
    sources: dict[Source, int] = Field(default_factory=dict)
    """The same pairs by how they came about."""
    pairs: list[PairStamp] = Field(default_factory=list)
    """Those it used for the first time in its lineage, in the order of the manifest."""
    missing: list[str] = Field(default_factory=list)
    """Ids its manifest lists as new and the lineage's stream no longer holds."""
    replayed: dict[str, Name | None] = Field(default_factory=dict)
    """Ids of pairs it saw again, with the version that used each first; None: no version here did."""


class PairTrace(Contract):
    """`GET /v1/lineage/pairs/{lineage}/{pair}`: from a pair to who made it and who learned from it."""

    id: str
    pair: Pair
    """With both critiques, and with the versions that made it in `provenance`."""
    state: Literal["waiting", "used", "given_up"]
    """`given_up`: delivered too often without a result."""
    reason: str = ""
    """Why it was given up."""
    used_by: Name | None = None
    """The ledger: the version that used it first."""
    replayed_by: list[Name] = Field(default_factory=list)
    """Versions that saw it again, oldest first."""
