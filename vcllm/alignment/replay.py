"""What of earlier rounds is shown or asked again, so that old attacks stay answered.

Pairs come back to training, the harder ones first; a sample of every round's attacks is asked of all later versions.
Does not know who trains, nor how hardness was measured.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from vcllm.contracts.attacks import Attack, ItemKind
from vcllm.contracts.base import Language
from vcllm.contracts.pairs import Pair

K = TypeVar("K", Language, ItemKind)
NONE_SHOWN: Mapping[str, int] = {}
"""Nothing was replayed yet."""


def choose_replay(
    earlier: Sequence[Pair],
    num_new: int,
    share: float,
    chance: random.Random,
    shown: Mapping[str, int] = NONE_SHOWN,
    hardness: Mapping[str, float] | None = None,
) -> list[Pair]:
    """So many that they make up `share` of the round's pairs, as far as there are any; highest in rank first.

    Ranked by hardness and a bonus for pairs that were rarely shown, so that none is forgotten and none that stays hard
    for a fault of its own crowds out the rest (see `_rank`). Languages, and kinds within each, stand as they do among
    `earlier`, and none is left out. A pair that says the same as an earlier one counts as that one.

    chance: settles ties only. shown: pair id to how often it was replayed; left out: never. hardness: pair id to a
    number in [0, 1], as far as it is known: the share of answers that failed when the query was last asked, or
    1 - exp(-loss) of a preference loss. Without it a pair is harder the smaller its margin; one without a rejected
    answer was easy.
    """
    pool = _distinct(earlier)
    num = min(len(pool), round(num_new * share / (1 - share)))
    rank = _rank(pool, shown, hardness or {}, chance)
    chosen: list[str] = []
    by_language = _grouped((pair.language, name) for name, pair in pool.items())
    for language, seats in _seats(num, by_language).items():
        by_kind = _grouped((pool[name].kind, name) for name in by_language[language])
        for kind, places in _seats(seats, by_kind).items():
            chosen += sorted(by_kind[kind], key=rank.__getitem__, reverse=True)[:places]
    return [pool[name] for name in sorted(chosen, key=rank.__getitem__, reverse=True)]


def retention_sample(
    attacks: Iterable[Attack], num: int, chance: random.Random, won: Collection[str] = ()
) -> list[Attack]:
    """Up to `num` of a round's attacks, to be asked of every later version; the same ones for the same `chance`.

    won: the queries that succeeded (misled; of a harmless question: were refused). They are given one half, since what
    once won must never win again; where there are too few of them or of the others, the rest take their places. Spread
    over languages first, then over cells. No query twice; those with different turns before them are different.
    """
    distinct = {(attack.query, str(attack.history)): attack for attack in attacks}
    rows = [distinct[key] for key in sorted(distinct)]
    chance.shuffle(rows)
    wins = [attack for attack in rows if attack.query in won]
    others = [attack for attack in rows if attack.query not in won]
    num_wins = max(min(len(wins), (num + 1) // 2), num - len(others))
    taken: Counter[str] = Counter()
    return [*_spread(wins, num_wins, taken), *_spread(others, num - num_wins, taken)]


def _distinct(pairs: Iterable[Pair]) -> dict[str, Pair]:
    """By id; of pairs with the same text the first, whose count of showings so goes on."""
    texts = {(str(pair.history), pair.query, pair.chosen, pair.rejected): pair for pair in reversed(list(pairs))}
    return {pair.id: pair for pair in texts.values()}


def _rank(
    pool: Mapping[str, Pair], shown: Mapping[str, int], hardness: Mapping[str, float], chance: random.Random
) -> dict[str, tuple[float, float]]:
    """Hardness plus sqrt(ln N / 4n), and a random number that settles ties.

    n: how often the pair was seen, its own round included; N: how often any was. UCB1 (Auer, Cesa-Bianchi and Fischer
    2002, Machine Learning 47:235) with 1/4, the most a value in [0, 1] can vary, for the variance, as in their
    UCB1-TUNED: with the 2 of UCB1 hardness would only settle ties among the least shown. Over cases of a loop: SSP,
    arXiv 2601.10589.
    """
    seen = {name: 1 + shown.get(name, 0) for name in pool}
    log_all = math.log(max(1, sum(seen.values())))
    return {
        name: (_hardness(pool[name], hardness.get(name)) + math.sqrt(log_all / (4 * seen[name])), chance.random())
        for name in sorted(pool)
    }


def _hardness(pair: Pair, known: float | None) -> float:
    if known is not None:
        assert 0 <= known <= 1, f"hardness lies in [0, 1], not {known}: give 1 - exp(-loss) for a loss"
        return known
    return 0.0 if pair.margin is None else 1 - pair.margin


def _grouped(rows: Iterable[tuple[K, str]]) -> dict[K, list[str]]:
    groups: dict[K, list[str]] = {}
    for key, name in sorted(rows):
        groups.setdefault(key, []).append(name)
    return groups


def _seats(num: int, groups: Mapping[K, Sequence[str]]) -> dict[K, int]:
    """`num` places over groups in proportion to their size, one for each first while there are enough.

    The next place goes where size / (2 * places + 1) is largest: Webster's method.
    """
    seats = dict.fromkeys(groups, 0)
    for _ in range(num):
        seats[max(seats, key=lambda key: _claim(len(groups[key]), seats[key]))] += 1
    return seats


def _claim(size: int, places: int) -> tuple[bool, bool, float]:
    return places < size, places == 0, size / (2 * places + 1)


def _spread(attacks: Iterable[Attack], num: int, taken: Counter[str]) -> list[Attack]:
    """The next one always from the language, then the cell, that has fewest so far; counts go on in `taken`."""
    left = list(attacks)
    chosen: list[Attack] = []
    while left and len(chosen) < num:
        best = min(left, key=lambda attack: (taken[attack.goal.cell.language], taken[attack.goal.cell.key]))
        left.remove(best)
        chosen.append(best)
        taken.update((best.goal.cell.language, best.goal.cell.key))
    return chosen
