"""How far raters agree beyond chance, with intervals that know which answers belong together.

Pure statistics over labels: two raters by Cohen's kappa, three and more by Krippendorff's alpha. Knows nothing of
judges, people or files.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from vcllm.contracts.evaluation import Measure

NUM_DRAWS = 2_000
Floats = NDArray[np.float64]
Weights = Literal["equal", "quadratic"]


def kappa(
    first: Sequence[int],
    second: Sequence[int],
    clusters: Sequence[Hashable],
    num_labels: int,
    weights: Weights,
    seed: int,
) -> Measure:
    """Cohen's kappa of labels 0 to num_labels - 1; its value is None where neither rater ever changes.

    Cohen 1960, Educational and Psychological Measurement 20:37; with quadratic weights Cohen 1968, Psychological
    Bulletin 70:213. 95 % percentile interval from drawing whole clusters; none where there is one cluster only.
    """
    if len({*first, *second}) < 2:
        return Measure(value=None, low=None, high=None, n=len(first))
    labels = list(range(num_labels))
    value = float(cohen_kappa_score(first, second, labels=labels, weights=None if weights == "equal" else weights))
    tables: dict[Hashable, Floats] = {}
    for one, other, cluster in zip(first, second, clusters, strict=True):
        tables.setdefault(cluster, np.zeros((num_labels, num_labels)))[one, other] += 1
    if len(tables) < 2:
        return Measure(value=value, low=None, high=None, n=len(first))
    stack, draw = np.array(list(tables.values())), np.random.default_rng(seed)
    times = draw.multinomial(len(stack), np.full(len(stack), 1 / len(stack)), size=NUM_DRAWS)
    drawn = _kappas(np.tensordot(times, stack, axes=1), weights)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Measure(value=value, low=float(low), high=float(high), n=len(first))


def _kappas(tables: Floats, weights: Weights) -> Floats:
    """Of tables of counts (draw, first, second); NaN where it is not defined."""
    size = tables.shape[-1]
    steps = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    cost = (steps > 0).astype(float) if weights == "equal" else steps.astype(float) ** 2
    total = tables.sum(axis=(1, 2))
    rows, columns = tables.sum(axis=2), tables.sum(axis=1)
    observed = (tables * cost).sum(axis=(1, 2)) / total
    expected = np.einsum("di,dj,ij->d", rows, columns, cost) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def krippendorff_alpha(
    ratings: Sequence[Sequence[float | None]], level: Literal["nominal", "ordinal", "interval"] = "nominal"
) -> float | None:
    """Of three raters or more, also with gaps; None where no unit has two ratings or all ratings are alike.

    ratings: one sequence for each rater, over the same units in the same order; None: not rated.
    Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, equations for coincidences and differences.
    """
    units = [[one for one in unit if one is not None] for unit in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({one for unit in units for one in unit})
    if len(values) < 2:
        return None
    place = {value: number for number, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in units:
        counts = np.bincount([place[one] for one in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    cost = _differences(values, totals, level)
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    return float(1 - (coincidences * cost).sum() / (expected * cost).sum())


def _differences(values: Sequence[float], totals: Floats, level: str) -> Any:
    """Squared difference of each two values, in the metric of the level."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if level == "interval":
        return np.subtract.outer(values, values) ** 2
    middles = np.cumsum(totals) - totals / 2
    return np.subtract.outer(middles, middles) ** 2
