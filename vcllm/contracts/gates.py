"""What the gate goes by beside the figures of two versions, and what is kept of its verdicts.

A candidate is held against the version it was trained from, on the same items. What the figures do not settle waits
for a person, whose word is kept beside the verdict.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcllm.contracts.base import Contract, Name
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.measure import Measure


class Difference(Measure):
    """How far a share moved on items that both versions answered: the candidate's minus its parent's."""

    measure: str
    """`attack_success`, `consistent`, ...: the name of the gate's check."""


class Decided(Contract):
    """A person's word on a candidate that the gate held."""

    decision: Literal["promote", "reject"]
    by: str
    """Id of the key that decided."""
    when: float
    """Unix seconds."""
    note: str = Field(default="", max_length=2000)


class Gated(Contract):
    """One candidate of a lineage and what became of it."""

    version: Literal[1] = 1
    lineage: Name
    candidate: Name
    """A version of the Actor."""
    parent: Name
    """The version it was measured against."""
    verdict: GateVerdict
    judged: float
    """Unix seconds."""
    decided: Decided | None = None
    """None: nobody had to, or nobody has yet."""

    @property
    def is_held(self) -> bool:
        """It waits for a person."""
        return self.verdict.decision == "hold" and self.decided is None

    @property
    def is_promoted(self) -> bool:
        """By the gate or by a person."""
        return self.verdict.passed or (self.decided is not None and self.decided.decision == "promote")


class GatedList(Contract):
    """`GET /v1/models/held`, longest waiting first."""

    data: list[Gated]


class HeldDecision(Contract):
    """`POST /v1/models/{version}/promote` and `/reject`."""

    note: str = Field(default="", max_length=2000)
    """Why, for whoever reads the record."""
    replaces: Name | None = None
    """For promoting: the version that is current now. None: the one the candidate was measured against; where
    another has been promoted since, that has to be said."""
