"""Several sets as one pass: each by its share, in an order that the seed alone decides.

A pass has as many rows as all sets together. A set's weight is its share of them, whatever its size; its rows are
drawn without replacement, and again from the start only when all were drawn. Memory: up to ten bytes a row.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Protocol

from vcllm.data.shapes import Row


class Rows(Protocol):
    """Rows by number: a list, or a `Spool`."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Row: ...


def mixed(sets: Sequence[Rows], weights: Sequence[float], seed: int) -> Iterator[Row]:
    """The rows of one pass; one set alone comes whole, shuffled."""
    counts = shares([len(rows) for rows in sets], weights)
    chance = random.Random(f"mixture-{seed}")
    order = array("H", (number for number, count in enumerate(counts) for _ in range(count)))
    chance.shuffle(order)
    draws = [_draws(len(rows), random.Random(f"mixture-{seed}-{number}")) for number, rows in enumerate(sets)]
    return (sets[number][next(draws[number])] for number in order)


def shares(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows each set gives to one pass: they add up to all sizes, in proportion to the weights.

    Fractions go to the largest remainders. An empty set gives nothing, and its share goes to the others.
    """
    total = sum(sizes)
    counted = [weight if size else 0.0 for size, weight in zip(sizes, weights, strict=True)]
    if not total:
        return [0] * len(sizes)
    exact = [total * weight / sum(counted) for weight in counted]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def _draws(size: int, chance: random.Random) -> Iterator[int]:
    """Row numbers without end: every row once, in random order, before any comes again."""
    while True:
        numbers = array("Q", range(size))
        chance.shuffle(numbers)
        yield from numbers
