"""Intervals and tests agree with published values, and never promise more than the data hold."""

import random

import pytest

from vcllm.evaluation.intervals import (
    benjamini_hochberg,
    effective_n,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_difference,
    rule_of_three,
    share_interval,
    wilson,
)

CAVO = {"both": 59, "gained": 6, "lost": 16, "neither": 80}
"""Complete response before and after therapy: Cavo et al. 2012, as in the R package contingencytables."""


# One share.


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombes_table(successes, n, low, high):
    """Table I of Newcombe 1998, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_exactly_at_zero_and_one():
    """A share that was never or always seen does not leave [0, 1] by rounding."""
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


def test_wilson_mirrors_successes_and_failures():
    """The interval of a share is that of its complement, turned over."""
    low, high = wilson(3, 40)

    assert wilson(37, 40) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 30, 200, 5000])
def test_the_rule_of_three_is_never_tighter_than_the_exact_bound(n):
    """1 - 0.05^(1/n) is the exact one-sided bound at zero."""
    assert 1 - 0.05 ** (1 / n) <= rule_of_three(n) <= 1


def test_the_rule_of_three_is_three_over_n():
    """Nothing in 200 tries: at most 1.5 %."""
    assert rule_of_three(200) == pytest.approx(0.015)


# Observations that share clusters.


def test_answers_that_repeat_within_a_cluster_count_once():
    """Each card asked twice with the same outcome is worth about as many observations as there are cards."""
    hits = [card % 3 == 0 for card in range(60) for _ in range(2)]
    cards = [card for card in range(60) for _ in range(2)]

    assert effective_n(hits, cards) == pytest.approx(60, rel=0.02)


def test_answers_of_their_own_cluster_keep_their_number():
    """Without neighbours there is no design effect worth speaking of."""
    hits = [card % 3 == 0 for card in range(120)]

    assert effective_n(hits, range(120)) == pytest.approx(120, rel=0.01)


def test_the_effective_size_never_exceeds_the_size():
    """Clusters that are more mixed than chance do not earn extra observations."""
    hits = [True, False] * 50
    cards = [pair for pair in range(50) for _ in range(2)]

    assert effective_n(hits, cards) == 100


def test_one_cluster_or_one_outcome_leaves_the_size_alone():
    """There is nothing to estimate a design effect from."""
    assert effective_n([True, False, True], ["a"] * 3) == 3
    assert effective_n([True] * 4, ["a", "a", "b", "b"]) == 4


def test_sharing_a_card_widens_the_interval():
    """The same hits are less telling when they come from few cards."""
    hits = [card < 4 for card in range(10) for _ in range(10)]
    alone_low, alone_high = share_interval(hits, range(100))
    low, high = share_interval(hits, [card for card in range(10) for _ in range(10)])

    assert low < alone_low < 0.4 < alone_high < high


def test_at_zero_the_bound_rests_on_independent_units():
    """Two languages of 50 questions are 50 tries, not 100."""
    pairs = [pair for pair in range(50) for _ in range(2)]

    assert share_interval([False] * 100, pairs, num_units=50) == (0.0, pytest.approx(0.06))
    assert share_interval([True] * 100, pairs, num_units=50) == (pytest.approx(0.94), 1.0)


# Two shares of the same items.


def test_the_paired_interval_matches_published_values():
    """Newcombe's square-and-add interval of contingencytables, there as before minus after."""
    difference, low, high = paired_difference(both=59, gained=6, lost=16, neither=80)

    assert (difference, low, high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)


def test_the_paired_interval_matches_a_small_published_table():
    """Airway hyper-responsiveness, Bentur et al. 2009: 21 children."""
    assert paired_difference(1, 1, 7, 12) == pytest.approx((-0.286, -0.507, -0.026), abs=5e-4)


def test_the_paired_interval_turns_with_the_direction():
    """Swapping before and after changes signs only."""
    difference, low, high = paired_difference(**CAVO)
    swapped = paired_difference(both=59, gained=16, lost=6, neither=80)

    assert swapped == pytest.approx((-difference, -high, -low))


def test_where_nothing_changed_the_interval_still_has_width():
    """No change among 100 items does not prove that there is none."""
    difference, low, high = paired_difference(both=0, gained=0, lost=0, neither=100)

    assert difference == 0
    assert low < 0 < high


def test_the_bootstrap_repeats_with_its_seed():
    """A report made twice from the same answers says the same."""
    before, after = [True] * 40 + [False] * 60, [True] * 20 + [False] * 80

    assert paired_bootstrap(before, after, range(100), seed=3) == paired_bootstrap(before, after, range(100), seed=3)


def test_the_bootstrap_agrees_with_normal_theory_for_independent_items():
    """600 items of their own cluster: within a tenth of 1.96 standard errors on both sides."""
    draw = random.Random(1)
    before, after = [draw.random() < 0.5 for _ in range(600)], [draw.random() < 0.3 for _ in range(600)]
    moves = [a - b for b, a in zip(before, after, strict=True)]
    mean = sum(moves) / 600
    half = 1.96 * (sum((move - mean) ** 2 for move in moves) / 600**2) ** 0.5

    low, high = paired_bootstrap(before, after, range(600), seed=0)

    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_the_bootstrap_draws_whole_clusters():
    """Every item four times, in the cluster of the first, tells nothing new."""
    draw = random.Random(2)
    before, after = [draw.random() < 0.5 for _ in range(60)], [draw.random() < 0.2 for _ in range(60)]
    single = paired_bootstrap(before, after, range(60), seed=5)

    assert paired_bootstrap(before * 4, after * 4, [*range(60)] * 4, seed=5) == single


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(6, 16, 0.052479), (1, 7, 0.070313), (0, 0, 1.0), (3, 3, 1.0), (0, 5, 0.0625)]
)
def test_mcnemar_is_the_exact_sign_test(gained, lost, p):
    """Values of contingencytables and of the binomial distribution; the direction does not matter."""
    assert mcnemar_exact(gained, lost) == pytest.approx(p, abs=1e-6)
    assert mcnemar_exact(lost, gained) == mcnemar_exact(gained, lost)


def test_mcnemar_stands_hundreds_of_changes():
    """No overflow where everything moved."""
    assert 0 <= mcnemar_exact(0, 3000) < 1e-300


# Many comparisons.


def test_holm_adjusts_as_r_does():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_hochberg_adjusts_as_r_does():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "BH")."""
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_corrections_only_ever_raise_p(correct):
    """No comparison gains from company, none passes 1, and no comparison at all is fine."""
    p_values = [0.9, 0.2, 0.001, 0.03, 0.8]
    adjusted = correct(p_values)

    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert correct([]) == []
