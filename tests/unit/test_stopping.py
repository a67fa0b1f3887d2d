"""The joint stop rule: all of its conditions, round after round, and which of them are not met yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vcllm.alignment.shares import NOTHING, Share
from vcllm.alignment.stopping import RoundFigures, stop_reason, waiting
from vcllm.contracts.charter import Thresholds
from vcllm.contracts.recipes import ControllerParams

LIMITS = Thresholds(max_attack_success=0.1, max_over_refusal=0.02, min_benign_helpful=0.93, max_broken=0.03)
TWO = ControllerParams(stop_after=2, flat=0.02)
CONDITIONS = ["rounds", "attack_success", "retention", "over_refusal", "benign_helpful", "broken", "coverage"]


def share(value: float) -> Share:
    return Share(value, 400)


GOOD = RoundFigures(
    fresh=share(0.05),
    retained=share(0.03),
    over_refusal=share(0.01),
    benign_helpful=share(0.95),
    broken=share(0.01),
    coverage=0.95,
)


def history(*changes: dict) -> list[RoundFigures]:
    return [replace(GOOD, **change) for change in changes]


def test_it_stops_when_all_conditions_hold_for_so_many_rounds():
    """The reason is a sentence with the figures."""
    rounds = history({}, {}, {"fresh": share(0.06)})

    assert waiting(rounds, LIMITS, TWO) == []
    assert "2 in number" in (reason := stop_reason(rounds, LIMITS, TWO))
    assert "5.0% of 400, 6.0% of 400" in reason


@pytest.mark.parametrize("num", [0, 1, 2])
def test_it_needs_one_round_more_than_it_counts(num):
    """Whether something grew shows only against the round before."""
    assert waiting([GOOD] * num, LIMITS, TWO) == ["rounds"]
    assert stop_reason([GOOD] * num, LIMITS, TWO) == ""


def test_switched_off_it_never_stops_but_tells_what_it_would_wait_for():
    """The table shows the conditions of any run."""
    never = ControllerParams(stop_after=0)

    assert stop_reason([GOOD] * 9, LIMITS, never) == ""
    assert waiting([GOOD, replace(GOOD, broken=share(0.1))], LIMITS, never) == ["broken"]


@pytest.mark.parametrize(
    ("rounds", "name"),
    [
        (history({"fresh": share(0.3)}, {"fresh": share(0.25)}, {"fresh": share(0.2)}), "attack_success"),
        (history({"fresh": share(0.2)}, {"fresh": share(0.2)}, {"fresh": share(0.25)}), "attack_success"),
        (history({"fresh": share(0.24)}, {"fresh": share(0.225)}, {"fresh": share(0.21)}), "attack_success"),
        (history({}, {"fresh": share(0.2)}, {}), "attack_success"),
        (history({}, {"fresh": NOTHING}, {}), "attack_success"),
        (history({}, {}, {"retained": share(0.1)}), "retention"),
        (history({}, {"retained": share(0.1)}, {}), "retention"),
        (history({}, {"over_refusal": share(0.03)}, {}), "over_refusal"),
        (history({}, {}, {"over_refusal": NOTHING}), "over_refusal"),
        (history({}, {}, {"benign_helpful": share(0.9)}), "benign_helpful"),
        (history({}, {"broken": share(0.05)}, {}), "broken"),
        (history({"coverage": 0.9}, {}, {}), "coverage"),
        (history({"coverage": 0.92}, {"coverage": 0.935}, {}), "coverage"),
    ],
    ids=[
        "falls",
        "rises",
        "falls slowly",
        "one high round",
        "unknown",
        "old attacks come back",
        "came back in between",
        "refuses once",
        "refusals unknown",
        "helps less",
        "breaks",
        "covers more",
        "covers slowly more",
    ],
)
def test_one_condition_that_does_not_hold_is_waited_for(rounds, name):
    """In any of the rounds, and by its name; a slow change is a change."""
    assert waiting(rounds, LIMITS, TWO) == [name]
    assert stop_reason(rounds, LIMITS, TWO) == ""


def test_new_attacks_that_win_as_often_as_ever_are_waited_for_no_longer():
    """Flat is enough: more rounds of the same bring nothing, and the gate has its own say."""
    rounds = history(*[{"fresh": share(value)} for value in (0.30, 0.31, 0.295)])

    assert "no longer falling" in stop_reason(rounds, LIMITS, TWO)


def test_before_anything_is_kept_nothing_comes_back():
    """A recipe may keep no queries at all."""
    assert waiting(history(*[{"retained": NOTHING}] * 3), LIMITS, TWO) == []


def test_kept_attacks_rise_by_more_than_chance_or_not_at_all():
    """Five in a hundred after three are noise; the same of thousands are not."""
    few = history(*[{"retained": Share(value, 100)} for value in (0.03, 0.03, 0.055)])
    many = history(*[{"retained": Share(value, 9000)} for value in (0.03, 0.03, 0.055)])

    assert (waiting(few, LIMITS, TWO), waiting(many, LIMITS, TWO)) == ([], ["retention"])


def test_only_the_last_rounds_count():
    """What was once wrong is forgiven."""
    bad = RoundFigures(share(0.9), share(0.9), share(0.9), share(0.1), share(0.9), coverage=0.1)

    assert waiting([bad] * 3 + [GOOD] * 3, LIMITS, TWO) == []
    assert waiting([bad, GOOD, GOOD], LIMITS, TWO) == ["coverage"]


def test_every_condition_has_a_name_of_its_own():
    """A first round in which nothing holds lists what it can know of."""
    bad = RoundFigures(share(0.9), share(0.9), share(0.9), share(0.1), share(0.9), coverage=0.1)

    assert set(waiting([GOOD, replace(bad, coverage=1.0)], LIMITS, TWO)) == set(CONDITIONS)
