"""Which cells of the archive are asked next: the least tried ones first, and again those where attacks win.

A draw has two parts. One spreads: it goes to the least tried cells, so that all of them have been tried after a few
rounds. The other returns to where attacks win, by what each cell's own results and those of its neighbours suggest.
Does not know what is asked in a cell, nor how its results come about.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from statistics import fmean

from vcllm.contracts.archive import CellState
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language

States = Mapping[str, CellState]
"""By the cell's key."""

SPREAD = 2 / 3
"""Largest share of a draw that spreads. While so many cells have never been tried, it is that large."""
MOST_OF_DRAW, ALWAYS_ALLOWED = 0.05, 3
"""The part that returns gives a cell no more than this share of the whole draw, or so many goals where that is more."""
SHARPNESS = 0.5
"""Temperature of the part that returns, as a share of `explore`."""
RARE = 2.0
"""Of a cell that was never tried: the exponent by which it is preferred to one that was tried for ever."""
GREED = 0.1
"""Temperature of a draw by success alone."""
LEAST_WEIGHT = 1e-12
"""As a share of the greatest: weights must not vanish, or there would be nothing to share out by."""

NEIGHBOURS = 2.0
"""Attempts that the neighbours' suggestion counts as, beside a cell's own."""
RECALLED = 8
"""A cell's own attempts count as no more than so many: its rate has forgotten older ones."""
PEERS = 2.0
"""Cells without a difference that are added to a row or column, so that few cells do not make one special."""


def draw(
    cells: Sequence[Cell],
    states: States,
    estimate: Mapping[str, float],
    num: int,
    chance: random.Random,
    explore: float,
) -> list[Cell]:
    """`num` cells, in no order. explore: in the unit of a success rate; higher spreads the draw in both its parts.

    Of the weight (estimate + explore), summed over all cells, the part of `explore` spreads; where untried cells need
    more than that they have it, up to `SPREAD`.
    """
    if not cells:
        return []
    order = chance.sample(cells, len(cells))
    tried = [states[cell.key].tried for cell in order]
    expected = [estimate[cell.key] for cell in order]
    most_spread = round(num * SPREAD)
    usual = round(num * explore / (explore + fmean(expected)))
    num_spread = min(most_spread, max(usual, tried.count(0)))
    weights = _softmax(
        [rate / (SHARPNESS * explore) + RARE / math.sqrt(1 + n) for rate, n in zip(expected, tried, strict=True)]
    )
    num_back = num - num_spread
    most = max(MOST_OF_DRAW * num, ALWAYS_ALLOWED, num_back / len(order))
    counts = _spin(_shares(weights, num_back, most), num_back, chance)
    least_tried = sorted(range(len(order)), key=lambda place: tried[place] + counts[place])
    places = [place for place, count in enumerate(counts) for _ in range(count)]
    places += islice(cycle(least_tried), num_spread)
    chance.shuffle(places)
    return [order[place] for place in places]


def draw_greedily(cells: Sequence[Cell], states: States, num: int, chance: random.Random) -> list[Cell]:
    """`num` cells by their own success alone, so that those which have won are asked again and again.

    For showing what then happens: a cell that was never tried has never won.
    """
    found = [states[cell.key] for cell in cells]
    weights = _softmax([(state.rate if state.tried else 0.0) / GREED for state in found])
    return chance.choices(cells, weights, k=num) if cells else []


def estimates(cells: Sequence[Cell], states: States) -> dict[str, float]:
    """By cell the share of answers that an attack is expected to mislead, from 0 to 1; also of those never tried.

    A cell's neighbours suggest their language's mean rate, and what its sub-domain and its tactic differ from that in
    this language: a two-way layout without interaction, its effects drawn towards none. With each attempt of its own
    a cell depends less on that. Where nothing was tried the suggestion is the optimistic rate of a new cell.
    """
    tried = [(cell, states[cell.key].rate) for cell in cells if states[cell.key].tried]
    level = {language: _level([rate for cell, rate in tried if cell.language == language]) for language in Language}
    differences: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for cell, rate in tried:
        for line in _lines(cell):
            differences[line].append(rate - level[cell.language])
    effect = {line: sum(found) / (len(found) + PEERS) for line, found in differences.items()}

    def expected(cell: Cell) -> float:
        suggested = level[cell.language] + sum(effect.get(line, 0.0) for line in _lines(cell))
        state = states[cell.key]
        own = min(state.tried, RECALLED)
        return (NEIGHBOURS * min(max(suggested, 0.0), 1.0) + own * state.rate) / (NEIGHBOURS + own)

    return {cell.key: expected(cell) for cell in cells}


def _level(rates: Sequence[float]) -> float:
    """Their mean, with one new cell among them."""
    return fmean([*rates, CellState().rate])


def _lines(cell: Cell) -> tuple[tuple[str, ...], ...]:
    """The row and the column it stands in."""
    return ("sub-domain", cell.subdomain, cell.language), ("tactic", cell.tactic, cell.language)


def _softmax(scores: Sequence[float]) -> list[float]:
    """Weights from `LEAST_WEIGHT` to 1."""
    best = max(scores, default=0.0)
    return [max(math.exp(score - best), LEAST_WEIGHT) for score in scores]


def _shares(weights: Sequence[float], total: float, most: float) -> list[float]:
    """The total, shared out by weights; what is above `most` goes to the others. `most` for all must be enough."""
    shares = [0.0] * len(weights)
    free, left = list(range(len(weights))), total
    while free:
        whole = sum(weights[place] for place in free)
        over = {place for place in free if left * weights[place] > most * whole}
        for place in over or free:
            shares[place] = most if over else left * weights[place] / whole
        left -= most * len(over)
        free = [place for place in free if place not in over] if over else []
    return shares


def _spin(shares: Sequence[float], num: int, chance: random.Random) -> list[int]:
    """Whole numbers that add up to `num`, each its share rounded up or down.

    Stochastic universal sampling (Baker 1987): one spin of a wheel with `num` evenly spaced pointers.
    """
    start, passed, before = chance.random(), 0.0, 0
    counts = []
    for place, share in enumerate(shares):
        passed += share
        upto = num if place == len(shares) - 1 else min(num, math.ceil(passed - start))
        counts.append(upto - before)
        before = upto
    return counts
