"""The archive in numbers: how much of the grid was tried and won, how evenly, and how unlike a round's attacks are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from vcllm.alignment.novelty import diversity
from vcllm.contracts.archive import ArchiveFigures, CellState
from vcllm.contracts.attacks import Attack
from vcllm.contracts.base import Language


def archive_figures(
    grid: Mapping[str, CellState], expected: Mapping[str, float], attacks: Iterable[Attack], weakest: int
) -> ArchiveFigures:
    """grid: its cells by key; expected: the success to be expected in each; weakest: how many cells are named."""
    states = list(grid.values())
    tried = sorted((key for key, state in grid.items() if state.tried), key=lambda key: (-expected[key], key))
    texts: dict[Language, list[str]] = {language: [] for language in Language}
    for attack in attacks:
        texts[attack.goal.cell.language].append(attack.query)
    return ArchiveFigures(
        coverage=len(tried) / max(1, len(states)),
        coverage_won=sum(bool(state.elites) for state in states) / max(1, len(states)),
        evenness=evenness([state.tried for state in states]),
        qd_score=sum(state.elites[0].quality for state in states if state.elites),
        num_elites=sum(len(state.elites) for state in states),
        weakest=tried[:weakest],
        diversity={language: diversity(own, language) for language, own in texts.items()},
    )


def evenness(counts: Sequence[int]) -> float | None:
    """Pielou's evenness (1966): the entropy of the counts, as a share of what it can be over so many cells.

    None: fewer than two attempts, or cells.
    """
    total = sum(counts)
    if total < 2 or len(counts) < 2:
        return None
    entropy = -sum(num / total * math.log(num / total) for num in counts if num)
    return min(1.0, max(0.0, entropy / math.log(len(counts))))
