"""From observations that share clusters to a figure with its interval, and to the difference of two.

Pure statistics: an observation is a number, an id by which it is found again in another model's answers, and the
cluster (set or pair of languages) whose members are not independent of each other. Miller 2024, arXiv 2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from vcllm.contracts.base import Language
from vcllm.contracts.evaluation import UNMEASURED, CellMeasures, Measure, PooledMeasure
from vcllm.evaluation.intervals import (
    bootstrap_mean,
    mcnemar_exact,
    paired_difference,
    rule_of_three,
    share_interval,
)

FEW_CHANGES = 10
"""Below so many changed answers a bootstrap sees too little; the score interval is used."""
POWER = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
"""Standard errors between zero and the smallest difference found with 80 % power at 5 %, two-sided."""


ALIKE = 1e-9
"""A standard error below this is none: all values are the same."""


@dataclass(frozen=True)
class Observation:
    """One thing that is counted or averaged."""

    id: str
    """The same in every model's answers."""
    cluster: str
    value: float
    """0 or 1 where it is counted."""
    lang: Language | None = None
    """None: about a pair of languages."""


def share(observations: Sequence[Observation]) -> Measure:
    """Of observations that are 0 or 1; the interval widens for those that share a cluster."""
    if not observations:
        return UNMEASURED
    hits = [one.value > 0.5 for one in observations]
    clusters = [one.cluster for one in observations]
    low, high = share_interval(hits, clusters, len(set(clusters)))
    return Measure(value=sum(hits) / len(hits), low=low, high=high, n=len(hits))


def mean(observations: Sequence[Observation], low: float = -math.inf, high: float = math.inf) -> Measure:
    """Of any numbers, with the t interval of clustered data; no interval where there is one cluster only.

    low, high: what the mean cannot leave. Where all values are alike, and nothing can be seen of how they vary, the
    interval is that of a share of which nothing was seen, spread over these bounds; without bounds there is none.
    """
    if not observations:
        return UNMEASURED
    value, (error, freedom) = fmean(one.value for one in observations), clustered_error(observations)
    if error is None:
        return Measure(value=value, low=None, high=None, n=len(observations))
    if error < ALIKE:
        down, up = _unseen(value, low, high, freedom + 1)
        return Measure(value=value, low=down, high=up, n=len(observations))
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Measure(value=value, low=max(low, value - half), high=min(high, value + half), n=len(observations))


def _unseen(value: float, low: float, high: float, num_clusters: int) -> tuple[float | None, float | None]:
    """At most 3 / n of what was not seen may differ, and by as much as the bounds allow."""
    if math.isinf(low) or math.isinf(high):
        return None, None
    share = rule_of_three(num_clusters)
    return value - share * (value - low), value + share * (high - value)


def clustered_error(observations: Sequence[Observation]) -> tuple[float | None, int]:
    """Standard error of the mean and its degrees of freedom; None for one cluster.

    The sandwich estimator with the correction G / (G - 1): Liang & Zeger 1986, Biometrika 73:13.
    """
    value = fmean(one.value for one in observations)
    residuals: dict[str, float] = {}
    for one in observations:
        residuals[one.cluster] = residuals.get(one.cluster, 0.0) + one.value - value
    num = len(residuals)
    if num < 2:
        return None, 0
    return math.sqrt(num / (num - 1) * sum(r**2 for r in residuals.values())) / len(observations), num - 1


def pooled(
    observations: Iterable[Observation], *, of_shares: bool, low: float = 0.0, high: float = 1.0
) -> PooledMeasure:
    """Over both languages, with each of them beside it."""
    found = list(observations)

    def figure(some: Sequence[Observation]) -> Measure:
        return share(some) if of_shares else mean(some, low, high)

    zh, en = ([one for one in found if one.lang == language] for language in (Language.ZH, Language.EN))
    return PooledMeasure(**dict(figure(found)), zh=figure(zh), en=figure(en))


def cells(observations: Sequence[Observation], *, of_shares: bool) -> CellMeasures:
    """Each language on its own."""
    both = pooled(observations, of_shares=of_shares)
    return CellMeasures(zh=both.zh, en=both.en)


@dataclass(frozen=True)
class Change:
    """How far the same observations differ between two models, `after` minus `before`."""

    difference: Measure
    p: float
    mde: float | None
    gained: int | None = None
    lost: int | None = None


def change(before: Sequence[Observation], after: Sequence[Observation], *, of_shares: bool, seed: int) -> Change | None:
    """On what both have; None where they have nothing in common."""
    later = {one.id: one for one in after}
    moves = [(old, later[old.id]) for old in before if old.id in later]
    if not moves:
        return None
    differences = [Observation(old.id, old.cluster, new.value - old.value) for old, new in moves]
    error, freedom = clustered_error(differences)
    value = fmean(one.value for one in differences)
    mde = None if not error else POWER * error
    if not of_shares:
        p = 1.0 if not error else float(2 * stats.t.sf(abs(value) / error, freedom))
        return Change(_mean_change(differences, seed), p, mde)
    gained = sum(new.value > old.value for old, new in moves)
    lost = sum(new.value < old.value for old, new in moves)
    low, high = _bootstrap(differences, seed) if gained + lost >= FEW_CHANGES else _score_interval(moves, gained, lost)
    difference = Measure(value=value, low=low, high=high, n=len(moves))
    return Change(difference, mcnemar_exact(gained, lost), mde, gained, lost)


def _mean_change(differences: Sequence[Observation], seed: int) -> Measure:
    """By the bootstrap where it sees something: several clusters, and not all of them alike."""
    plain = mean(differences, -1, 1)
    error, _ = clustered_error(differences)
    if error is None or error < ALIKE:
        return plain
    low, high = _bootstrap(differences, seed)
    return plain.model_copy(update={"low": low, "high": high})


def _bootstrap(differences: Sequence[Observation], seed: int) -> tuple[float, float]:
    return bootstrap_mean([one.value for one in differences], [one.cluster for one in differences], seed)


def _score_interval(moves: Sequence[tuple[Observation, Observation]], gained: int, lost: int) -> tuple[float, float]:
    both = sum(old.value > 0.5 and new.value > 0.5 for old, new in moves)
    _, low, high = paired_difference(both, gained, lost, len(moves) - both - gained - lost)
    return low, high


def spearman(x: Sequence[float], y: Sequence[float]) -> Measure:
    """Rank correlation with Fisher's interval; UNMEASURED below four values or where one of them never changes."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Measure(value=None, low=None, high=None, n=len(x))
    r = float(stats.spearmanr(x, y).statistic)
    half = float(stats.norm.ppf(0.975)) * math.sqrt((1 + r**2 / 2) / (len(x) - 3))
    z = math.atanh(max(-0.999999, min(0.999999, r)))
    return Measure(value=r, low=math.tanh(z - half), high=math.tanh(z + half), n=len(x))
