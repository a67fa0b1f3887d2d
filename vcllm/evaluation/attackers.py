"""How varied the attacks of a round are: an attacker that always asks the same thing looks beaten when it is not."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row

MOST_COMPARED = 200
"""Self-BLEU compares each attack with all others: of more, so many are drawn."""
MAX_ORDER = 4


def attacker_figures(rows: Iterable[Row], num_cells: int) -> dict[str, dict[str, float]]:
    """Round to `num`, `self_bleu`, `coverage` and `evenness` of its attacks; rows carry their round in `meta`.

    num_cells: sub-domains times styles times languages. coverage: share of them that were tried; evenness: Shannon
    entropy over the tried ones, 1 when all were tried equally often (Pielou 1966); self_bleu: Zhu et al. 2018,
    arXiv 1802.01886, higher means more alike.
    """
    rounds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        rounds[row.meta.get("round", "?")].append(row)
    # Rounds are numbers: the tenth comes after the ninth.
    return {
        number: _figures(rounds[number], num_cells) for number in sorted(rounds, key=lambda name: (len(name), name))
    }


def _figures(rows: Sequence[Row], num_cells: int) -> dict[str, float]:
    cells = Counter((row.subdomain, row.attack_style, row.lang) for row in rows)
    return {
        "num": float(len(rows)),
        "coverage": len(cells) / num_cells,
        "evenness": _evenness(cells),
        "self_bleu": _alike(rows),
    }


def _alike(rows: Sequence[Row]) -> float:
    """Self-BLEU within each language, weighed by how many attacks it has."""
    total = weight = 0.0
    for language in Language:
        texts = [_words(row.prompt[-1], language) for row in rows if row.lang is language]
        if (value := self_bleu(texts)) is not None:
            total, weight = total + value * len(texts), weight + len(texts)
    return total / weight if weight else 0.0


def _words(text: str, language: Language) -> list[str]:
    return [c for c in text if not c.isspace()] if language is Language.ZH else text.casefold().split()


def _evenness(cells: Counter[tuple[str, str | None, Language]]) -> float:
    if len(cells) < 2:
        return 0.0
    shares = [count / cells.total() for count in cells.values()]
    return -sum(share * math.log(share) for share in shares) / math.log(len(cells))


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 of each text against all others, add-one smoothed above single words; None below two texts."""
    drawn = list(texts)
    if len(drawn) > MOST_COMPARED:
        drawn = random.Random(0).sample(drawn, MOST_COMPARED)
    if len(drawn) < 2:
        return None
    grams = [[Counter(_grams(text, order)) for order in range(1, MAX_ORDER + 1)] for text in drawn]
    return sum(_bleu(at, drawn, grams) for at in range(len(drawn))) / len(drawn)


def _grams(text: Sequence[str], order: int) -> Iterable[tuple[str, ...]]:
    return zip(*(text[at:] for at in range(order)), strict=False)


def _bleu(at: int, texts: Sequence[Sequence[str]], grams: Sequence[Sequence[Counter[tuple[str, ...]]]]) -> float:
    """Papineni et al. 2002, with the smoothing of Lin & Och 2004."""
    total = 0.0
    for order in range(MAX_ORDER):
        own = grams[at][order]
        most: Counter[tuple[str, ...]] = Counter()
        for other, counts in enumerate(grams):
            if other != at:
                most |= counts[order] & own
        extra = 1 if order else 0
        matched, all_ = sum((own & most).values()) + extra, own.total() + extra
        if not matched:
            return 0.0
        total += math.log(matched / all_) / MAX_ORDER
    length = len(texts[at])
    nearest = min((len(text) for other, text in enumerate(texts) if other != at), key=lambda n: (abs(n - length), n))
    return math.exp(total + min(0.0, 1 - nearest / max(1, length)))
