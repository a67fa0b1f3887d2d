"""Two bands steer the rounds: which dial hears which figure, by how far it moves, and that it settles."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from vcllm.alignment.controller import BOTH, Seen, first, steer
from vcllm.alignment.shares import NOTHING, Share
from vcllm.contracts.archive import ArchiveFigures, LanguageDiversity
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Thresholds
from vcllm.contracts.recipes import Rounds
from vcllm.contracts.rounds import Steering

LIMITS = Thresholds(max_attack_success=0.1, max_over_refusal=0.02, min_benign_helpful=0.93, max_broken=0.03)
OPTIM = {"optim": {"learning_rate": 1e-4}}
MANY = 10_000
"""Observations that leave nothing to chance."""
LOW, WITHIN, HIGH, MOST = (Share(value, MANY) for value in (0.001, 0.05, 0.3, 0.8))
KIND, REFUSING = Share(0.0, MANY), Share(0.1, MANY)


def recipe(**fields) -> Rounds:
    return Rounds.model_validate({"benign_share": 0.2, "preference": OPTIM, "attacker": OPTIM} | fields)


def seen(attack_success: Share = WITHIN, over_refusal: Share = KIND, **fields) -> Seen:
    return Seen(attack_success, over_refusal, **fields)


def steered(figures: Seen, start: Rounds | None = None, before: Steering | None = None) -> Steering:
    start = start or recipe()
    return steer(before or first(start), figures, start, LIMITS)


def archive(coverage: float = 1.0, evenness: float | None = 0.9, similarity: float | None = 0.2) -> ArchiveFigures:
    return ArchiveFigures(
        coverage=coverage,
        coverage_won=0.0,
        evenness=evenness,
        qd_score=0.0,
        num_elites=0,
        diversity={Language.ZH: LanguageDiversity(num=80, distinct=0.5, self_similarity=similarity)},
    )


def test_the_first_round_is_the_recipes():
    """Nothing is known yet."""
    start = recipe(look_alike_share=0.3, archive={"explore": 0.4})

    assert first(start) == Steering(benign_share=0.2, look_alike_share=0.3, explore=0.4, trains=BOTH)
    assert first(recipe(attacker_learns=False)).trains == ("actor",)


def test_switched_off_every_round_is_like_the_first():
    """Whatever was seen."""
    start = recipe(controller={"enabled": False})

    assert steered(seen(HIGH, REFUSING, passed=False), start) == first(start)


# The benign share.


@pytest.mark.parametrize(
    ("attack_success", "over_refusal", "factor"),
    [
        (WITHIN, REFUSING, 1.25),
        (HIGH, REFUSING, 1.25),
        (HIGH, KIND, 0.8),
        (WITHIN, KIND, 1.0),
        (LOW, KIND, 1.0),
        (NOTHING, NOTHING, 1.0),
        (HIGH, NOTHING, 1.0),
    ],
)
def test_refusals_bring_more_harmless_goals_and_attacks_alone_fewer(attack_success, over_refusal, factor):
    """Over-refusal goes first; where no harmless question was asked, none is taken away either."""
    after = steered(seen(attack_success, over_refusal))

    assert after.benign_share == pytest.approx(0.2 * factor)


def test_what_chance_would_explain_moves_nothing():
    """One refusal among twenty questions is not over-refusal; ten among two hundred are."""
    assert steered(seen(over_refusal=Share(0.05, 20))).benign_share == 0.2
    assert steered(seen(over_refusal=Share(0.05, 200))).benign_share > 0.2
    assert steered(seen(attack_success=Share(0.12, 50))).benign_share == 0.2
    assert steered(seen(attack_success=Share(0.12, 5000))).benign_share < 0.2


def test_between_the_ceiling_and_proof_the_share_waits():
    """Too many refusals to give harmless goals away, too few to ask for more."""
    assert steered(seen(HIGH, Share(0.03, 100))).benign_share == 0.2


@pytest.mark.parametrize(("share", "figures", "end"), [(0.2, (HIGH, REFUSING), 0.4), (0.2, (HIGH, KIND), 0.1)])
def test_the_benign_share_stays_within_half_and_double_of_the_recipes(share, figures, end):
    """At the end of its range it says so."""
    start = recipe(benign_share=share)
    steering = first(start)
    for _ in range(12):
        steering = steer(steering, seen(*figures), start, LIMITS)

    assert steering.benign_share == pytest.approx(end)
    assert "end of its range" in steering.reason


def test_attacks_never_vanish_from_a_round():
    """Double of six tenths would leave none."""
    assert steered(seen(over_refusal=REFUSING), recipe(benign_share=0.8)).benign_share == 0.9


def test_a_dial_that_turns_back_moves_half_as_far():
    """And one that goes on comes slowly back to the full step."""
    start = recipe()
    up = steered(seen(over_refusal=REFUSING), start)
    back = steered(seen(HIGH), start, up)
    on = steered(seen(HIGH), start, back)

    assert math.log(back.benign_share / up.benign_share) == pytest.approx(-0.5 * math.log(1.25))
    assert math.log(on.benign_share / back.benign_share) == pytest.approx(-0.55 * math.log(1.25))


def test_a_round_in_the_bands_keeps_what_the_dial_remembers():
    """So that a swing over several rounds is still one."""
    up = steered(seen(over_refusal=REFUSING))
    still = steered(seen(), before=up)

    assert (still.benign_share, still.moves) == (up.benign_share, up.moves)


# Look-alikes.


def test_refused_look_alikes_bring_more_of_them_up_to_all():
    """They are what teaches the difference."""
    start = recipe(look_alike_share=0.5)
    steering = first(start)
    for _ in range(9):
        steering = steer(steering, seen(over_refusal=REFUSING, look_alike_refusal=REFUSING), start, LIMITS)

    assert steering.look_alike_share == 1.0


def test_refused_plain_questions_take_the_room_back_but_no_further_than_the_recipe():
    """Look-alikes that are answered well need no more than that."""
    start = recipe(look_alike_share=0.5)
    raised = steered(seen(over_refusal=REFUSING, look_alike_refusal=REFUSING), start)
    steering = raised
    for _ in range(9):
        steering = steer(steering, seen(over_refusal=REFUSING, look_alike_refusal=KIND), start, LIMITS)

    assert raised.look_alike_share > steering.look_alike_share == 0.5


def test_a_recipe_without_look_alikes_stays_without():
    """Its tactics may have none."""
    assert steered(seen(over_refusal=REFUSING, look_alike_refusal=REFUSING)).look_alike_share == 0.0


# Exploring.


@pytest.mark.parametrize(
    "archives",
    [
        [archive(0.6), archive(0.61)],
        [archive(), archive(evenness=0.85)],
        [archive(), archive(similarity=0.3)],
        [archive(similarity=s) for s in (0.2, 0.215, 0.23, 0.245)],
    ],
    ids=["coverage stalls", "attempts pile up", "attacks grow alike", "attacks grow alike slowly"],
)
def test_exploring_rises_when_the_attacker_narrows(archives):
    """Also when no single round shows it."""
    assert steered(seen(archives=archives)).explore == pytest.approx(0.15 * 1.25)


@pytest.mark.parametrize(
    "archives",
    [
        [],
        [archive(0.5)],
        [archive(0.6), archive(0.7)],
        [archive(), archive(evenness=0.95, similarity=0.1)],
        [archive(), archive(evenness=None, similarity=None)],
    ],
    ids=["none", "one round", "coverage grows", "all covered, more varied", "nothing to measure"],
)
def test_exploring_stays_while_the_attacker_spreads(archives):
    """Coverage cannot stall where nothing is left to cover."""
    assert steered(seen(archives=archives)).explore == 0.15


def test_exploring_falls_for_a_few_cells_that_are_far_weaker():
    """The goals gather there; where many are, it is no spot but the level."""
    assert steered(seen(cell_rates=[0.9] + [0.1] * 30)).explore == pytest.approx(0.15 / 1.25)
    assert steered(seen(cell_rates=[0.9] * 10 + [0.1] * 30)).explore == 0.15
    assert steered(seen(cell_rates=[0.4] + [0.1] * 30)).explore == 0.15


def test_narrowing_goes_before_weak_cells():
    """A planted spot must not end in one trick."""
    figures = seen(cell_rates=[0.9] + [0.1] * 30, archives=[archive(), archive(similarity=0.3)])

    assert steered(figures).explore > 0.15


def test_without_diversity_exploring_is_left_alone():
    """The arm that shows the collapse must not be rescued from it."""
    start = recipe(archive={"diversity": False})

    assert steered(seen(archives=[archive(), archive(similarity=0.6)]), start).explore == 0.15


# Who trains.


@pytest.mark.parametrize(
    ("figures", "roles"),
    [
        (seen(WITHIN), BOTH),
        (seen(HIGH), BOTH),
        (seen(MOST), ("actor",)),
        (seen(LOW), ("attacker",)),
        (seen(LOW, REFUSING), ("attacker",)),
        (seen(LOW, retained=HIGH), BOTH),
        (seen(Share(0.0, 20)), BOTH),
        (seen(NOTHING), BOTH),
        (seen(WITHIN, passed=False), ("actor",)),
        (seen(LOW, passed=False), ("actor",)),
        (seen(WITHIN, passed=True), BOTH),
    ],
    ids=[
        "within",
        "high",
        "plenty of wins",
        "low",
        "low, refusing",
        "low, but old attacks are back",
        "low by chance",
        "unknown",
        "rejected",
        "low and rejected",
        "passed",
    ],
)
def test_who_trains_follows_from_who_has_something_to_learn(figures, roles):
    """And an Attacker never learns from a candidate that did not pass."""
    assert steered(figures).trains == roles


def test_an_actor_that_refuses_too_much_never_waits_twice():
    """Attacks that hardly win may mean that everything is refused."""
    waited = steered(seen(LOW, REFUSING))

    assert steered(seen(LOW, REFUSING), before=waited).trains == BOTH
    assert steered(seen(LOW, KIND), before=waited).trains == ("attacker",)


@pytest.mark.parametrize("figures", [seen(LOW), seen(WITHIN), seen(MOST), seen(passed=False)])
def test_an_attacker_that_does_not_learn_never_trains(figures):
    """The recipe said so."""
    assert steered(figures, recipe(attacker_learns=False)).trains == ("actor",)


def test_the_reason_names_figure_bound_and_move():
    """One sentence that an operator can check."""
    reason = steered(seen(MOST, REFUSING)).reason

    assert reason == (
        "Over-refusal (10.0% of 10000) is above 2.0%: benign share 0.200 to 0.250; "
        "the attacker wins often enough (80.0% of 10000): the actor trains alone."
    )
    assert steered(seen()).reason == "No figure left its band."


# The loop closed: a small world that the dials act upon.


@dataclass
class FakeWorld:
    """An Actor that learns to refuse what it sees too little of, and an Attacker that learns to win.

    Over-refusal follows the benign share with a lag of rounds: towards 12 % without harmless goals, 0 at a quarter.
    """

    learning: float
    """Share of the attacks that a round without harmless goals takes away."""
    num: int = MANY
    """Goals of a round."""
    chance: random.Random | None = None
    """None: figures without noise."""
    attack_success: float = 0.4
    over_refusal: float = 0.0
    shares: list[float] = field(default_factory=list)

    def play(self, start: Rounds, num_rounds: int) -> FakeWorld:
        steering = first(start)
        for _ in range(num_rounds):
            benign = steering.benign_share
            figures = seen(self._observed(self.attack_success, 1 - benign), self._observed(self.over_refusal, benign))
            if "actor" in steering.trains:
                self.attack_success *= 1 - self.learning * (1 - benign)
                self.over_refusal += 0.5 * (max(0.0, 0.12 * (1 - benign / 0.25)) - self.over_refusal)
            if "attacker" in steering.trains:
                self.attack_success += 0.02 * (1 - self.attack_success)
            steering = steer(steering, figures, start, LIMITS)
            self.shares.append(steering.benign_share)
        return self

    def _observed(self, true: float, part: float) -> Share:
        num = round(self.num * part)
        if self.chance is None:
            return Share(true, num)
        return Share.mean([float(self.chance.random() < true) for _ in range(num)])


def test_both_bands_are_reached_where_the_recipe_alone_reaches_one():
    """The recipe's own benign share leaves an Actor that refuses; the controller finds one that does not."""
    start = recipe(benign_share=0.15)
    steered_world = FakeWorld(learning=0.35).play(start, 12)
    fixed = FakeWorld(learning=0.35).play(start.model_copy(update={"controller": off()}), 12)

    assert steered_world.attack_success < LIMITS.max_attack_success
    assert steered_world.over_refusal < LIMITS.max_over_refusal < fixed.over_refusal
    assert len(set(steered_world.shares[-5:])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_both_bands_are_reached_through_the_noise_of_real_rounds(seed):
    """With 400 goals a round, on every seed, and as far as such a round can show it."""
    world = FakeWorld(learning=0.35, num=400, chance=random.Random(seed)).play(recipe(benign_share=0.15), 40)

    assert world.attack_success < LIMITS.max_attack_success
    assert not Share(world.over_refusal, 400 * world.shares[-1]).above(LIMITS.max_over_refusal)


def test_the_benign_share_settles_where_both_bands_cannot_be_had():
    """Attacks ask for fewer harmless goals and refusals for more, for ever: every swing is shorter than the last.

    With a step of one size this world swings between 0.12 and 0.3 without end, since what the share does shows rounds
    later.
    """
    shares = FakeWorld(learning=0.15).play(recipe(benign_share=0.15), 80).shares

    swings = [max(shares[i : i + 20]) - min(shares[i : i + 20]) for i in (0, 20, 40, 60)]
    assert swings == sorted(swings, reverse=True)
    assert swings[-1] < 0.1 * swings[0]


def off():
    return recipe(controller={"enabled": False}).controller
