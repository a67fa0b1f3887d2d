"""What is asked of the Attacker and what it gives back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcllm.contracts.base import Contract, Language

MAX_GOALS = 512
"""Of one request."""

ItemKind = Literal["attack", "benign"]
"""`attack` presses a violating claim; `benign` wraps a harmless question in the same way (refusing it is the fault)."""


class Cell(Contract):
    """One square of the archive grid."""

    subdomain: str
    tactic: str
    language: Language

    @property
    def key(self) -> str:
        return f"{self.subdomain}/{self.tactic}/{self.language}"


class AttackGoal(Contract):
    """One query to write."""

    cell: Cell
    kind: ItemKind = "attack"
    card: str
    """Card id."""
    goal: int = Field(ge=0)
    """Index into the card's claims (attack) or benign items (benign)."""
    text: str = Field(min_length=1, max_length=2000)
    """The claim or question the query must carry."""


class AttackRequest(Contract):
    """`POST /v1/attacks`."""

    goals: list[AttackGoal] = Field(min_length=1, max_length=MAX_GOALS)
    temperature: float = Field(default=1.0, ge=0, le=2)
    max_tokens: int = Field(default=64, ge=1, le=1024)
    seed: int | None = None
    model: str | None = None
    """A version of the attacker; None: the current one."""


class Attack(Contract):
    """A query the Attacker wrote for a goal."""

    goal: AttackGoal
    query: str
    refused: bool = False
    """The Attacker declined to write it; counted apart, never sent on."""
    complete: bool = True
    """False when it ran into the token limit."""


class AttackReply(Contract):
    """In the order of the goals."""

    attacks: list[Attack]
    attacker_version: str


def attack_prompt(goal: AttackGoal) -> str:
    """The one user message that asks the Attacker for a goal; short on purpose, for tiny models."""
    return f"{goal.kind} | {goal.cell.language} | {goal.cell.tactic} | {goal.text}"
