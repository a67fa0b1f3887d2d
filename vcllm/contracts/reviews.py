"""What the Critic leaves to people, and what they decide."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcllm.contracts.attacks import AttackGoal
from vcllm.contracts.base import Contract, Name
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Provenance


class ReviewItem(Contract):
    """One answer the Critic is not sure of."""

    version: Literal[1] = 1
    id: str
    """sha256 of query, history, answer and lineage: the same answer is asked of people once."""
    lineage: Name
    goal: AttackGoal
    history: list[ChatMessage] = Field(default_factory=list)
    query: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    rejected: str | None = None
    """An answer of the same query that the Critic is sure to be worse; becomes the pair's other side."""
    rejected_critique: Critique | None = None
    critique: Critique
    provenance: Provenance
    created: float
    """Unix seconds."""


class ReviewDecision(Contract):
    """What a person says the answer is. `consistent` approves it for training."""

    outcome: Literal[Outcome.CONSISTENT, Outcome.VIOLATING, Outcome.REFUSAL, Outcome.BROKEN]
    note: str = Field(default="", max_length=2000)


class Reviewed(Contract):
    """A decided item; it stays for good, as a label the Critic is refitted on."""

    item: ReviewItem
    decision: ReviewDecision
    by: str
    """Id of the key that decided."""
    decided: float
    pair: str | None = None
    """Id of the approved pair, when it was approved."""
