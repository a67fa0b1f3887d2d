"""How many pairs of one cell and of one source a round keeps: no cell and no source may outweigh the rest.

Knows pairs, not where they come from.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from vcllm.contracts.pairs import Pair, Source

Key = tuple[bool, bool, float]


@dataclass
class Capped:
    """What a round keeps, in the order it came, and how many pairs fell to which cap."""

    kept: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """`cell_full`, `source_full`."""


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Of pairs that say the same of the same conversation the first stays.

    A contradiction is often what the query's own best and worst say, too: put the list whose source is to be named in
    front.
    """
    found: dict[tuple[object, ...], Pair] = {}
    for pair in pairs:
        turns = tuple((turn.role, turn.content) for turn in pair.history)
        found.setdefault((turns, pair.query, pair.chosen, pair.rejected), pair)
    return list(found.values())


def cap(
    pairs: Sequence[Pair], max_per_cell: int | None, source_caps: Mapping[str, float], chance: random.Random
) -> Capped:
    """At most so many pairs of a cell, benign ones and attacks apart, and of a source at most its share of all kept.

    In a cell people's decisions stay first, then pairs that reject something, and of those the wider margin, about
    which the Critic errs less; equals by chance. A source gives up its pairs where a cell has most of them. A place
    that becomes free this way is filled again. Shares hold for what is kept in the end: a source alone in a round
    cannot keep to a share below 1, and keeps nothing.

    max_per_cell: None: all. source_caps: largest shares in [0, 1] by `Pair.source`; what is not named has none.
    """
    order = sorted(chance.sample(range(len(pairs)), len(pairs)), key=lambda place: _rank(pairs[place]))
    full: set[int] = set()
    while True:
        fitting = _fitting([place for place in order if place not in full], pairs, max_per_cell)
        over = _over(fitting, pairs, source_caps)
        if not over:
            break
        full |= over
    kept = sorted(fitting)
    num_over = len(full)
    dropped = Counter({"source_full": num_over, "cell_full": len(pairs) - len(kept) - num_over})
    return Capped([pairs[place] for place in kept], +dropped)


def largest(counts: Mapping[Source, int], caps: Mapping[str, float]) -> dict[Source, int]:
    """How many of each source may stay so that no share is above its cap, and as many as can be.

    With u pairs of sources without a cap the total T satisfies T = u + sum(min(n, floor(cap T))). The right side does
    not fall as T grows, so going down from all of them ends at the largest T there is (Tarski's fixed point).
    """
    total = sum(counts.values())
    while True:
        # exact: 0.29 of 100 are 29, which floats do not say
        most = {source: int(Fraction(str(caps.get(source, 1))) * total) for source in counts}
        kept = {source: min(num, most[source]) for source, num in counts.items()}
        if sum(kept.values()) == total:
            return kept
        total = sum(kept.values())


def _rank(pair: Pair) -> Key:
    return pair.source != "human", pair.rejected is None, -(pair.margin or 0.0)


def _fitting(order: Sequence[int], pairs: Sequence[Pair], most: int | None) -> list[int]:
    taken: Counter[tuple[str, str]] = Counter()
    fitting = []
    for place in order:
        cell = pairs[place].kind, pairs[place].cell.key
        taken[cell] += 1
        if most is None or taken[cell] <= most:
            fitting.append(place)
    return fitting


def _over(fitting: Sequence[int], pairs: Sequence[Pair], caps: Mapping[str, float]) -> set[int]:
    """Places that are above their source's share: of every cell its first, then of every cell its second, and so on."""
    by_source: defaultdict[Source, list[tuple[int, int]]] = defaultdict(list)
    depth: Counter[tuple[str, str, str]] = Counter()
    for place in fitting:
        pair = pairs[place]
        cell = pair.source, pair.kind, pair.cell.key
        by_source[pair.source].append((depth[cell], place))
        depth[cell] += 1
    most = largest({source: len(places) for source, places in by_source.items()}, caps)
    return {
        place
        for source, places in by_source.items()
        for _, place in sorted(places, key=lambda one: one[0])[most[source] :]
    }
