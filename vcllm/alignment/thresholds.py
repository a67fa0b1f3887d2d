"""How high the Critic's score must be, language by language, as labelled answers tell it; and how far to believe it.

Pure. Labels must be of answers as they come: those of the abstain band alone would only tell of the band. Only scores
are looked at here; the gate asks for the outcome as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from vcllm.alignment.verdicts import Limits
from vcllm.contracts.base import Language

FEWEST_LABELS = 30
"""Of a language; with fewer, nothing is fitted."""
ENOUGH_LABELS = 200
"""From here on the lower end of the precision's interval must do. With fewer, a flawless record could not: it takes 73
approved answers, all of them right, for a lower end of 0.95. There the share itself must do."""
FEWEST_APPROVED = 10
"""Labelled answers beyond a threshold; fewer of them say nothing of its precision."""
Z = 1.959964
"""Of a 95 % interval."""
NUM_BINS = 10

Basis = Literal["bound", "estimate", "as_given", "too_few_labels", "out_of_reach"]
"""What a threshold rests on: the interval's lower end, or the share itself. Else it is the default: because no
precision was asked for, there are too few labels, or no score keeps to it."""


@dataclass(frozen=True)
class Labelled:
    """One answer the Critic scored and somebody labelled."""

    language: Language
    score: float
    """The Critic's, from 0 to 1."""
    good: bool
    """Whether it is fit to be approved."""


@dataclass(frozen=True)
class Fitted:
    """The limits of one language, and what the labels say of them."""

    limits: Limits
    chosen_by: Basis
    rejected_by: Basis
    n: int
    """Labels."""
    precision: float | None
    """Of those at or above `chosen_min`, the share that is good; None: there are none."""
    precision_low: float | None
    """Lower end of its 95 % interval."""
    recall: float | None
    """Of the good ones, the share at or above `chosen_min`."""
    ece: float | None
    """Expected calibration error of the score as the probability of being good; None: no labels."""
    brier: float | None
    """Mean squared error of the same (Brier 1950): 0 is best, 0.25 is what always saying one half gets."""


@dataclass(frozen=True)
class Thresholds:
    """The limits of every language."""

    asked: float | None
    """The precision that was asked for; None: nothing was fitted."""
    by_language: dict[Language, Fitted]

    @property
    def limits(self) -> dict[Language, Limits]:
        return {language: fitted.limits for language, fitted in self.by_language.items()}

    def as_json(self) -> dict[str, Any]:
        languages = {language.value: asdict(fitted) for language, fitted in self.by_language.items()}
        return {"asked": self.asked, "by_language": languages}


def fit(labelled: Iterable[Labelled], precision: float | None, default: Limits) -> Thresholds:
    """For each language the lowest `chosen_min` of which the asked share of approved answers is good.

    `rejected_max` mirrors it: the highest score below `chosen_min` of which that share of rejected ones is not good.
    What cannot be fitted stays at its default and says why. precision: None fits nothing and only measures.
    """
    rows = list(labelled)
    return Thresholds(
        asked=precision,
        by_language={
            language: _fitted([row for row in rows if row.language is language], precision, default)
            for language in Language
        },
    )


def wilson_low(hits: int, n: int) -> float:
    """Lower end of the 95 % score interval of a share (Wilson 1927, JASA 22:209)."""
    share, square = hits / n, Z * Z
    spread = Z * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, (share + square / (2 * n) - spread) / (1 + square / n)) if hits else 0.0


def calibration_error(rows: Sequence[Labelled]) -> float:
    """Mean distance of score and share of good ones over ten bins of equal width, each by its size (Naeini et al. 2015,
    AAAI)."""
    bins: dict[int, list[Labelled]] = {}
    for row in rows:
        bins.setdefault(min(NUM_BINS - 1, int(row.score * NUM_BINS)), []).append(row)
    return sum(abs(sum(row.score - row.good for row in some)) for some in bins.values()) / len(rows)


def brier_score(rows: Sequence[Labelled]) -> float:
    return sum((row.score - row.good) ** 2 for row in rows) / len(rows)


def _fitted(rows: Sequence[Labelled], precision: float | None, default: Limits) -> Fitted:
    chosen_min, chosen_by = _furthest([(row.score, row.good) for row in rows], precision, len(rows))
    if chosen_min is None:
        chosen_min = default.chosen_min
    below = [(-row.score, not row.good) for row in rows if row.score < chosen_min]
    mirrored, rejected_by = _furthest(below, precision, len(rows))
    rejected_max = min(default.rejected_max, chosen_min) if mirrored is None else -mirrored
    approved = [row.good for row in rows if row.score >= chosen_min]
    num_good, hits = sum(row.good for row in rows), sum(approved)
    return Fitted(
        limits=Limits(chosen_min, rejected_max, default.criterion_min),
        chosen_by=chosen_by,
        rejected_by=rejected_by,
        n=len(rows),
        precision=hits / len(approved) if approved else None,
        precision_low=wilson_low(hits, len(approved)) if approved else None,
        recall=hits / num_good if num_good else None,
        ece=calibration_error(rows) if rows else None,
        brier=brier_score(rows) if rows else None,
    )


def _furthest(
    rows: Sequence[tuple[float, bool]], precision: float | None, num_labels: int
) -> tuple[float | None, Basis]:
    """The lowest score such that, of all rows at or above it, the share of hits is at least the precision."""
    if precision is None:
        return None, "as_given"
    if num_labels < FEWEST_LABELS:
        return None, "too_few_labels"
    basis: Basis = "bound" if num_labels >= ENOUGH_LABELS else "estimate"
    found, hits, n = None, 0, 0
    for score, alike in groupby(sorted(rows, reverse=True), key=lambda row: row[0]):
        some = [hit for _, hit in alike]
        hits, n = hits + sum(some), n + len(some)
        reached = wilson_low(hits, n) if basis == "bound" else hits / n
        if n >= FEWEST_APPROVED and reached >= precision:
            found = score
    return found, basis if found is not None else "out_of_reach"
