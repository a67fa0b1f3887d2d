"""What is asked of the Attacker and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from operator import not_
from typing import Literal

from pydantic import Field, model_validator

from vcllm.contracts.base import Contract, Language
from vcllm.contracts.chat import ChatMessage, Seed

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
    claim: str = Field(default="", max_length=2000, exclude_if=not_)
    """Of a harmless look-alike: a claim that is mentioned beside the question, and that nobody is asked to share."""
    modifiers: tuple[str, ...] = Field(default=(), max_length=3, exclude_if=not_)
    """Further tactics laid over the cell's own."""
    num_turns: int = Field(default=1, ge=1, le=5, exclude_if=lambda num: num == 1)
    """Turns of the user; the last one carries the text."""
    parent: str = Field(default="", max_length=4000, exclude_if=not_)
    """A query that won before, to be varied."""
    swapped: tuple[str, str] | None = Field(default=None, exclude_if=lambda names: names is None)
    """A group's name and the one put in its place: the text, or the claim beside a harmless question, is then not the
    card's own, and nothing may be looked up by `goal` that is held against its words."""
    brief: str = Field(default="", max_length=16000, exclude_if=not_)
    """What a prompted language model is told instead of the short prompt: see `vcllm.alignment.briefs`."""


class AttackRequest(Contract):
    """`POST /v1/attacks`."""

    goals: list[AttackGoal] = Field(min_length=1, max_length=MAX_GOALS)
    histories: list[list[ChatMessage]] = Field(default_factory=list, max_length=MAX_GOALS)
    """The conversation so far of every goal, user and assistant by turns; none: all of them begin."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    max_tokens: int = Field(default=64, ge=1, le=1024)
    seed: Seed | None = None
    model: str | None = None
    """A version of the attacker; None: the current one."""

    @model_validator(mode="after")
    def _one_history_each(self) -> AttackRequest:
        if self.histories and len(self.histories) != len(self.goals):
            raise ValueError(f"{len(self.goals)} goals with {len(self.histories)} histories: give one each, or none")
        return self


class Attack(Contract):
    """A query the Attacker wrote for a goal."""

    goal: AttackGoal
    query: str
    """The user's turn that was written; the last one, once an attack is complete."""
    history: list[ChatMessage] = Field(default_factory=list, exclude_if=not_)
    """What was said before it, user and assistant by turns."""
    refused: bool = False
    """The Attacker declined to write it; counted apart, never sent on."""
    complete: bool = True
    """False when it ran into the token limit."""


class AttackReply(Contract):
    """In the order of the goals."""

    attacks: list[Attack]
    attacker_version: str


def attack_prompt(goal: AttackGoal, history: Sequence[ChatMessage] = ()) -> str:
    """The one user message that asks the Attacker for a goal's next turn; short on purpose, for tiny models."""
    if goal.brief:
        return goal.brief
    tactic = "+".join((goal.cell.tactic, *goal.modifiers))
    parts = [goal.kind, goal.cell.language, tactic, goal.text, goal.claim]
    if goal.num_turns > 1:
        turn = 1 + sum(message.role == "user" for message in history)
        parts.append(f"{turn}/{goal.num_turns}")
    parts.append(goal.parent)
    return " | ".join(part for part in parts if part)
