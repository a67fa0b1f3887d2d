"""The archive as data: a grid sub-domain x tactic x language of what was tried, what won, and how it went."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcllm.contracts.attacks import AttackGoal
from vcllm.contracts.base import Contract, Language, Name
from vcllm.contracts.chat import ChatMessage


class Elite(Contract):
    """A winning attack that a cell keeps."""

    query: str
    history: list[ChatMessage] = Field(default_factory=list)
    goal: AttackGoal
    success: float = Field(gt=0, le=1)
    """Share of the judged answers that violate the charter, when it was last played."""
    novelty: float = Field(ge=0, le=1)
    """When it was entered: distance from the nearest win of its language."""
    round: int = Field(ge=1)
    """When it was entered."""
    embedding: list[float] = Field(default_factory=list)
    """Unit length, rounded; empty: none was taken."""

    @property
    def quality(self) -> float:
        """What elites of a cell are ranked by, in [0, 1]."""
        return self.success


class Tried(Contract):
    """One remembered attempt, won or not: what a prompted Attacker is told of how it went."""

    query: str
    success: float = Field(ge=0, le=1)
    answer: str = ""
    """The answer that came nearest to a violation, cut to a few hundred characters."""
    round: int


class CellState(Contract):
    """All that is known of one cell."""

    tried: int = Field(default=0, ge=0)
    won: int = Field(default=0, ge=0)
    """Attempts with at least one violating answer."""
    rate: float = Field(default=0.5, ge=0, le=1)
    """Moving success rate; optimistic until tried, so that empty cells are filled."""
    last: int = Field(default=0, ge=0)
    """The round that last tried it."""
    elites: list[Elite] = Field(default_factory=list)
    """Best first."""
    memory: list[Tried] = Field(default_factory=list)
    """Newest last."""


class ArchiveState(Contract):
    """The whole archive, as it is stored and exported."""

    version: Literal[1] = 1
    lineage: Name
    round: int = Field(ge=0)
    """The last round that was entered."""
    cells: dict[str, CellState]
    """`sub-domain/tactic/language` to what is known."""


class LanguageDiversity(Contract):
    """How unlike each other one language's attacks of a round are."""

    num: int = Field(ge=0)
    distinct: float | None
    """Share of different character n-grams among all of them; None: too few attacks."""
    self_similarity: float | None
    """Mean similarity of two attacks drawn at random, in [0, 1]."""


class ArchiveFigures(Contract):
    """The archive in numbers, after a round."""

    coverage: float = Field(ge=0, le=1)
    """Cells tried at least once."""
    coverage_won: float = Field(ge=0, le=1)
    """Cells with at least one elite."""
    evenness: float | None = Field(ge=0, le=1)
    """Pielou's evenness of the attempts over the cells: 1 when all were tried alike; None below two attempts."""
    qd_score: float = Field(ge=0)
    """Sum over the cells of their best elite's quality (Pugh et al. 2016)."""
    num_elites: int = Field(ge=0)
    weakest: list[str] = Field(default_factory=list)
    """Cells with the highest moving success rate among those tried, weakest first."""
    diversity: dict[Language, LanguageDiversity] = Field(default_factory=dict)
    """Of the round's own attacks."""
