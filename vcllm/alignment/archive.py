"""The archive: a quality-diversity grid sub-domain x tactic x language of what was tried and what won.

It decides where the Attacker looks next (weak and little-tried cells first) and how much a win teaches (novel wins
more). State is plain data, so a round can be replayed from what was written down.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from vcllm.contracts.attacks import Attack, Cell

KEPT_QUERIES = 8
"""Winning queries remembered per cell, newest last: what novelty is measured against."""
EXPLORE = 0.15
"""Weight of a cell that never won: every cell keeps being asked."""
DECAY = 0.5
"""How fast a cell's success rate follows its newest results."""


@dataclass
class Record:
    """What is known of one cell."""

    tried: int = 0
    won: int = 0
    rate: float = 0.5
    """Moving success rate; optimistic until tried, so that empty cells are filled."""
    queries: list[str] = field(default_factory=list)


class Archive:
    """The grid."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.records: dict[str, Record] = {cell.key: Record() for cell in cells}

    def weight(self, cell: Cell) -> float:
        return self.records[cell.key].rate + EXPLORE

    def choose(self, cells: list[Cell], num: int, chance: random.Random) -> list[Cell]:
        """`num` cells, drawn with their weights; with enough draws every cell comes up."""
        return chance.choices(cells, weights=[self.weight(cell) for cell in cells], k=num)

    def enter(self, attacks: Iterable[tuple[Attack, float]]) -> None:
        """Record a round's attacks, each with the share of its answers that violated."""
        by_cell: dict[str, list[tuple[Attack, float]]] = {}
        for attack, success in attacks:
            by_cell.setdefault(attack.goal.cell.key, []).append((attack, success))
        for key, rows in by_cell.items():
            record = self.records.setdefault(key, Record())
            wins = [(attack, success) for attack, success in rows if success > 0]
            record.tried += len(rows)
            record.won += len(wins)
            mean = sum(success for _, success in rows) / len(rows)
            record.rate = DECAY * record.rate + (1 - DECAY) * mean
            record.queries = [*record.queries, *(attack.query for attack, _ in wins)][-KEPT_QUERIES:]

    def novelty(self, attack: Attack) -> float:
        """1 for a query unlike every remembered win of its cell, 0 for one that is already there."""
        known = self.records.get(attack.goal.cell.key, Record()).queries
        return 1.0 - max((similarity(attack.query, query) for query in known), default=0.0)

    def coverage(self) -> float:
        """Share of cells that were tried at least once."""
        return sum(record.tried > 0 for record in self.records.values()) / max(1, len(self.records))


def similarity(first: str, second: str) -> float:
    """Jaccard overlap of character trigrams, in [0, 1]; works for Chinese and English alike."""
    one, other = _trigrams(first), _trigrams(second)
    return len(one & other) / len(one | other) if one | other else 1.0


def _trigrams(text: str) -> set[str]:
    padded = f"  {text.lower()} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}
