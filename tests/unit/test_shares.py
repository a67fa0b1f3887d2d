"""When a share differs from a bound, or from another share, by more than chance."""

from __future__ import annotations

import pytest
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

from vcllm.alignment.shares import NOTHING, Share, Z
from vcllm.contracts.evaluation import UNMEASURED, Measure


@pytest.mark.parametrize("bound", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("n", [20, 160])
def test_beyond_a_bound_is_what_the_wilson_interval_leaves_beyond_it(bound, n):
    """The score test and its interval say the same for every count."""
    alpha = 2 * norm.sf(Z)
    for hits in range(n + 1):
        low, high = proportion_confint(hits, n, alpha=alpha, method="wilson")
        share = Share(hits / n, n)

        assert (share.above(bound), share.below(bound)) == (low > bound, high < bound), hits


@pytest.mark.parametrize("before", [2, 10, 40])
def test_a_rise_is_what_the_pooled_test_calls_one(before):
    """Unless it is within what counts as flat."""
    for after in range(81):
        statistic, _ = proportions_ztest([after, before], [80, 120])
        rose = Share(after / 80, 80).rose_since(Share(before / 120, 120), flat=0.05)

        assert rose == (statistic > Z and after / 80 - before / 120 > 0.05), after


def test_nothing_observed_is_beyond_no_bound_and_within_none():
    """What was not measured neither moves a dial nor meets a condition."""
    other = Share(0.5, 10)

    assert not any([NOTHING.above(0.0), NOTHING.below(1.0), NOTHING.at_most(1.0), NOTHING.at_least(0.0)])
    assert not any([NOTHING.rose_since(other, 0.0), other.rose_since(NOTHING, 0.0)])


def test_a_share_is_read_from_a_figure_or_from_values_without_the_unjudged():
    """A query that nobody could judge is no observation."""
    assert Share.of(Measure(value=0.25, low=0.1, high=0.5, n=8)) == Share(0.25, 8)
    assert Share.of(UNMEASURED) == Share.of(None) == Share.mean([None]) == Share.mean([]) == NOTHING
    assert Share.mean([1.0, None, 0.5]) == Share(0.75, 2)
