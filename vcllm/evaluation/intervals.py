"""How sure a share is: intervals, paired tests and corrections for many of them.

Pure functions over counts and booleans, each with its source; they know nothing of suites, stages or reports. Their
libraries are loaded on first use: a worker that only might measure something later starts without them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

Interval = tuple[float, float]


def wilson(successes: float, n: float) -> Interval:
    """95 % score interval of a share; `n` may be an effective sample size.

    Wilson 1927, JASA 22:209; the form is method 3 of Newcombe 1998, Statistics in Medicine 17:857.
    """
    assert n > 0 and 0 <= successes <= n, "a share needs observations, and no more successes than those"
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, method="wilson")
    return (0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high))


def rule_of_three(n: int) -> float:
    """Upper 95 % bound of a share of which nothing was seen in `n` independent tries.

    Hanley & Lippman-Hand 1983, JAMA 249:1743. Never below the exact bound 1 - 0.05^(1/n).
    """
    assert n > 0, "a bound needs tries"
    return min(1.0, 3 / n)


def effective_n(hits: Sequence[bool], clusters: Sequence[Hashable]) -> float:
    """How many independent observations the hits are worth, given what they share; never more than there are.

    The sample size divided by the design effect: Rao & Scott 1992, Biometrics 48:577. With one cluster, or
    hits that are all alike, no effect can be estimated and the plain size comes back.
    """
    n, share = len(hits), sum(hits) / len(hits)
    residuals: dict[Hashable, float] = {}
    for hit, cluster in zip(hits, clusters, strict=True):
        residuals[cluster] = residuals.get(cluster, 0.0) + hit - share
    num_clusters, binomial = len(residuals), share * (1 - share) / n
    if num_clusters < 2 or binomial == 0:
        return float(n)
    clustered = num_clusters / (num_clusters - 1) * sum(r**2 for r in residuals.values()) / n**2
    return n / max(1.0, clustered / binomial)


def share_interval(hits: Sequence[bool], clusters: Sequence[Hashable], num_units: int | None = None) -> Interval:
    """95 % interval of a share whose observations share clusters.

    Wilson on the effective sample size: Franco et al. 2019, J. Survey Statistics and Methodology 7:334.
    At 0 and 1, where a design effect cannot be seen, the rule of three on `num_units` (default: all).
    """
    successes, n = sum(hits), len(hits)
    if successes == 0:
        return 0.0, rule_of_three(num_units or n)
    if successes == n:
        return 1 - rule_of_three(num_units or n), 1.0
    size = effective_n(hits, clusters)
    return wilson(successes / n * size, size)


def paired_difference(both: float, gained: float, lost: float, neither: float) -> tuple[float, float, float]:
    """Difference of two shares of the same items (`gained` minus `lost`), with its 95 % interval.

    The numbers may be those of an effective sample.

    Square-and-add of two Wilson intervals, correlation corrected for continuity: method 10 of Newcombe 1998,
    Statistics in Medicine 17:2635.
    """
    n = both + gained + lost + neither
    assert n > 0, "a difference needs pairs"
    after, before = (both + gained) / n, (both + lost) / n
    (low_a, high_a), (low_b, high_b) = wilson(both + gained, n), wilson(both + lost, n)
    phi = _correlation(both, gained, lost, neither)
    down = _hypotenuse(after - low_a, high_b - before, phi)
    up = _hypotenuse(high_a - after, before - low_b, phi)
    return after - before, after - before - down, after - before + up


def _correlation(both: float, gained: float, lost: float, neither: float) -> float:
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess, slack = both * neither - gained * lost, (both + gained + lost + neither) / 2
    if margins == 0 or 0 <= excess <= slack:
        return 0.0
    return (excess - slack if excess > slack else excess) / math.sqrt(margins)


def _hypotenuse(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a**2 - 2 * phi * a * b + b**2))


def paired_bootstrap(
    before: Sequence[bool],
    after: Sequence[bool],
    clusters: Sequence[Hashable],
    seed: int,
    num_draws: int = 10_000,
) -> Interval:
    """95 % percentile interval of the difference of two shares of the same items, drawing whole clusters.

    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13; for clustered items,
    Miller 2024, arXiv 2411.00640. The same seed gives the same interval. It cannot see what never occurred:
    where few items changed, `paired_difference` is the better choice.
    """
    assert before, "a difference needs items"
    moves = [float(a) - float(b) for b, a in zip(before, after, strict=True)]
    return bootstrap_mean(moves, clusters, seed, num_draws)


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[Hashable], seed: int, num_draws: int = 10_000
) -> Interval:
    """95 % percentile interval of a mean, drawing whole clusters."""
    import numpy as np

    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        total = sums.setdefault(cluster, [0.0, 0.0])
        total[0] += value
        total[1] += 1
    totals, sizes = np.array(list(sums.values())).T
    draw = np.random.default_rng(seed)
    means = np.empty(num_draws)
    for start in range(0, num_draws, 500):
        drawn = draw.integers(len(totals), size=(min(500, num_draws - start), len(totals)))
        means[start : start + 500] = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p that both directions of change are equally likely.

    The sign test on the discordant pairs: McNemar 1947, Psychometrika 12:153, in its exact binomial form.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the given order; controls the chance of any false finding.

    Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the given order; controls the share of false findings among the findings.

    Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57:289.
    """
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: Sequence[float], method: str) -> list[float]:
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method=method)[1]] if p_values else []
