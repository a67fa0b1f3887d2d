"""The Critic's thresholds as labelled answers tell them, and what is reported of them."""

from __future__ import annotations

import json
import random

import pytest

from vcllm.alignment.thresholds import (
    ENOUGH_LABELS,
    FEWEST_APPROVED,
    FEWEST_LABELS,
    Labelled,
    brier_score,
    calibration_error,
    fit,
    wilson_low,
)
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.base import Language
from vcllm.evaluation.intervals import wilson

DEFAULT = Limits(chosen_min=0.6, rejected_max=0.5, criterion_min=0.25)
ZH, EN = Language.ZH, Language.EN


def labels(*rows, language=EN):
    """rows: score, how many of them are good, how many are not."""
    return [
        Labelled(language, score, good)
        for score, num_good, num_bad in rows
        for good in [True] * num_good + [False] * num_bad
    ]


def test_the_lowest_score_that_keeps_to_the_precision_is_chosen():
    """At 0.4 it is 47 of 50, at 0.3 no more than 47 of 55; few labels, so the share itself decides."""
    fitted = fit(labels((0.9, 30, 0), (0.4, 17, 3), (0.3, 0, 5), (0.1, 0, 20)), 0.94, DEFAULT).by_language[EN]

    assert (fitted.limits.chosen_min, fitted.chosen_by) == (0.4, "estimate")
    assert (fitted.n, fitted.precision, fitted.recall) == (75, pytest.approx(0.94), 1.0)
    assert fitted.precision_low == wilson_low(47, 50)


def test_the_rejected_side_mirrors_it():
    """At and below 0.1 nothing is good, with 0.3 three of 13 are, and more than 0.2 was not asked for."""
    rows = labels((0.9, 30, 0), (0.3, 3, 0), (0.1, 0, 10), (0.05, 0, 10))

    strict, lax = (fit(rows, precision, DEFAULT).by_language[EN] for precision in (0.95, 0.85))

    assert (strict.limits.rejected_max, strict.rejected_by) == (0.1, "estimate")
    assert lax.limits.rejected_max == 0.1 < lax.limits.chosen_min == 0.3


def test_what_is_approved_is_never_rejected_as_well():
    """Scores that say nothing would allow for both; the rejected ones stay below the chosen ones."""
    chance = random.Random(0)
    rows = [Labelled(EN, chance.random(), chance.random() < 0.5) for _ in range(150)]

    for precision in (0.3, 0.45, 0.5, 0.55):
        limits = fit(rows, precision, DEFAULT).limits[EN]
        assert limits.rejected_max <= limits.chosen_min


def test_with_enough_labels_the_intervals_lower_end_must_do():
    """Of 300 labels, 150 right ones of 155 at 0.6 are not surely 0.95; the 140 of 140 at 0.8 are."""
    rows = labels((0.8, 140, 0), (0.6, 10, 5), (0.1, 0, 145))

    fitted = fit(rows, 0.95, DEFAULT).by_language[EN]

    assert len(rows) >= ENOUGH_LABELS
    assert (fitted.limits.chosen_min, fitted.chosen_by) == (0.8, "bound")
    assert fitted.precision_low is not None and fitted.precision_low >= 0.95
    assert 150 / 155 > 0.95 > wilson_low(150, 155)


@pytest.mark.parametrize(
    ("rows", "precision", "basis"),
    [
        (labels((0.9, FEWEST_LABELS - 1, 0)), 0.9, "too_few_labels"),
        (labels((0.9, 20, 20)), 0.9, "out_of_reach"),
        (labels((0.9, FEWEST_APPROVED - 1, 0), (0.5, 0, 40)), 0.9, "out_of_reach"),
        (labels((0.9, 40, 0)), None, "as_given"),
    ],
    ids=["too few labels", "no score is precise enough", "too few approved", "not asked for"],
)
def test_what_cannot_be_fitted_keeps_its_default_and_says_why(rows, precision, basis):
    """Nothing falls back silently; the default is measured all the same."""
    fitted = fit(rows, precision, DEFAULT).by_language[EN]

    assert (fitted.limits.chosen_min, fitted.chosen_by) == (0.6, basis)
    assert fitted.n == len(rows) and fitted.precision is not None and fitted.brier is not None


def test_languages_are_fitted_apart():
    """A critic may be sharp in one and blunt in the other; the floor of the criteria is passed on."""
    rows = labels((0.3, 40, 0), language=EN) + labels((0.9, 30, 0), (0.3, 0, 30), language=ZH)

    limits = fit(rows, 0.9, DEFAULT).limits

    assert (limits[EN].chosen_min, limits[ZH].chosen_min) == (0.3, 0.9)
    assert {one.criterion_min for one in limits.values()} == {0.25}


def test_the_order_of_labels_does_not_matter():
    """And equal scores stay together on one side."""
    rows = labels((0.9, 30, 1), (0.5, 10, 2), (0.2, 3, 20))
    shuffled = random.Random(3).sample(rows, len(rows))

    assert fit(shuffled, 0.9, DEFAULT).limits == fit(rows, 0.9, DEFAULT).limits


def test_no_labels_leave_everything_open():
    """No figure is made up."""
    fitted = fit([], 0.9, DEFAULT).by_language[ZH]

    assert fitted.limits == DEFAULT
    assert (fitted.n, fitted.precision, fitted.recall, fitted.ece, fitted.brier) == (0, None, None, None, None)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (47, 50), (150, 155), (1, 3)])
def test_the_bound_is_the_reports_own(hits, n):
    """The same interval that the report gives, without its libraries."""
    assert wilson_low(hits, n) == pytest.approx(wilson(hits, n)[0], abs=1e-6)


def test_a_flawless_record_needs_as_many_answers_as_is_said():
    """73 of 73 have a lower end of 0.95, 72 of 72 have not."""
    assert wilson_low(72, 72) < 0.95 <= wilson_low(73, 73)


def test_a_score_that_is_the_share_of_good_ones_is_calibrated():
    """Bin by bin; one that is always sure of itself is off by what it gets wrong."""
    assert calibration_error(labels((0.75, 3, 1), (0.25, 1, 3))) == pytest.approx(0)
    assert calibration_error(labels((1.0, 3, 1))) == pytest.approx(0.25)
    assert brier_score(labels((1.0, 3, 1))) == pytest.approx(0.25)
    assert brier_score(labels((1.0, 2, 0), (0.0, 0, 2))) == 0


def test_thresholds_are_plain_json():
    """As they are kept beside the round."""
    found = fit(labels((0.9, 40, 0)), 0.9, DEFAULT).as_json()

    kept = json.loads(json.dumps(found))

    assert kept == found
    assert kept["by_language"]["en"]["limits"] == {"chosen_min": 0.9, "rejected_max": 0.5, "criterion_min": 0.25}
    assert kept["by_language"]["zh"]["chosen_by"] == "too_few_labels"
