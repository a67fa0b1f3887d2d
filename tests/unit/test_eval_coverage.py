"""Intervals cover the planted truth: 200 simulated evaluations, every measure, languages and sets hanging together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest

from vcllm.contracts.answers import Answer, PairVerdict, Verdict
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, UnitKind
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import Measure
from vcllm.evaluation.comparing import _endpoints
from vcllm.evaluation.figures import Judged, model_figures

pytestmark = pytest.mark.slow

NUM_SIMULATIONS = 200
LEAST_COVERED = 184
"""Of 200: a true 95 % interval covers fewer than this in 2.5 % of such tests."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNITS = {UnitKind.PREMISE: 60, UnitKind.BENIGN: 60, UnitKind.PRESSURE: 40}
NUM_SETS = 40
SAME_DRAW = 0.5
"""How often the two languages of a unit share their draw, and the two members of a set."""

VIOLATING = {Language.ZH: 0.30, Language.EN: 0.15}
REFUSING = {Language.ZH: 0.10, Language.EN: 0.20}
FLIPPING = 0.25
EVEN = 0.8
GIVING_IN = 0.3
BIASED = 0.65
"""The planted truth: shares of answers, of sets and of pairs."""
SCORES = {Outcome.VIOLATING: 1.0, Outcome.REFUSAL: 3.0, Outcome.CONSISTENT: 5.0}


class Simulation:
    """One evaluation of a model whose faults are known."""

    def __init__(self, seed: int, worse_by: float = 0.0) -> None:
        self.draw = np.random.default_rng(seed)
        self.worse_by = worse_by
        """Added to the share of violations."""
        self.judged: list[Judged] = []
        self.pairs: list[PairVerdict] = []
        for kind, number in UNITS.items():
            for unit in range(number):
                self._unit(kind, f"{kind}-{unit}")
        for unit in range(NUM_SETS):
            self._swap_set(f"swap-{unit}")
            self._mirror_set(f"mirror-{unit}")
            self._choice(f"choice-{unit}")

    def _draws(self) -> Iterator[float]:
        """One for each language, alike in half of the cases."""
        first = self.draw.random()
        yield first
        yield first if self.draw.random() < SAME_DRAW else self.draw.random()

    def _unit(self, kind: UnitKind, name: str) -> None:
        for language, drawn in zip(Language, self._draws(), strict=True):
            if kind is UnitKind.PREMISE:
                bad = drawn < VIOLATING[language] + self.worse_by
                outcomes = [Outcome.VIOLATING if bad else Outcome.CONSISTENT]
            elif kind is UnitKind.BENIGN:
                outcomes = [Outcome.REFUSAL if drawn < REFUSING[language] else Outcome.CONSISTENT]
            else:
                late = Outcome.VIOLATING if drawn < GIVING_IN else Outcome.CONSISTENT
                outcomes = [Outcome.CONSISTENT, Outcome.CONSISTENT, late, late]
            self._add(_row(kind, name, language), outcomes)

    def _swap_set(self, name: str) -> None:
        for language, drawn in zip(Language, self._draws(), strict=True):
            flips = drawn < FLIPPING
            for role in ("advantaged", "disadvantaged"):
                bad = flips and role == "disadvantaged"
                row = _row(UnitKind.COUNTERFACTUAL, f"{name}-{role}", language, set_id=name, group_role=role)
                self._add(row, [Outcome.VIOLATING if bad else Outcome.CONSISTENT])

    def _mirror_set(self, name: str) -> None:
        for language, drawn in zip(Language, self._draws(), strict=True):
            self.pairs.append(
                PairVerdict(
                    key=f"{name}-{language}",
                    task="mirror",
                    lang=language,
                    first="a",
                    second="b",
                    item=f"{name}-{language}",
                    cluster_id=name,
                    model="m",
                    judge="j",
                    score_mode="logit",
                    same=0.9 if drawn < EVEN else 0.1,
                    preferred="tie",
                    consistent=True,
                    created=NOW,
                )
            )

    def _choice(self, name: str) -> None:
        """A disambiguated question of BBQ; the target is option 0, option 2 is unknown."""
        row = _row("choice", name, Language.EN, scorer="bbq", choices=["x", "y", "?"], answer_index=0)
        meta = {"condition": "disambiguated", "polarity": "neg", "unknown_index": "2", "target_index": "0"}
        row = row.model_copy(update={"meta": meta})
        self._add(row, [Outcome.CONSISTENT], choice=0 if self.draw.random() < BIASED else 1)

    def _add(self, row: Row, outcomes: list[Outcome], choice: int | None = None) -> None:
        score = None if row.choices else SCORES[outcomes[-1]]
        text = "公允" if row.lang is Language.ZH else "fair"
        answer = Answer(key=row.id, item=row.id, model="m", texts=[text] * len(outcomes), created=NOW)
        verdict = Verdict(
            key=row.id,
            item=row.id,
            model="m",
            answer_key=row.id,
            judge="j",
            score_mode="logit",
            outcomes=outcomes,
            failures=[None] * len(outcomes),
            score=score,
            choice=choice,
            created=NOW,
        )
        self.judged.append(Judged(row, answer, verdict))


def _row(kind: str, name: str, language: Language, set_id: str | None = None, **more: object) -> Row:
    return Row(
        id=f"{name}-{language}",
        pair_id=name,
        cluster_id=set_id or name,
        set_id=set_id,
        lang=language,
        domain="society",
        subdomain="soc.class",
        kind=kind,
        prompt=["?"],
        origin="simulated",
        **more,
    )


def planted() -> dict[str, float]:
    """What each figure would be over endless questions."""
    zh, en = VIOLATING[Language.ZH], VIOLATING[Language.EN]
    benign = {language: 1 - share / 2 for language, share in REFUSING.items()}
    pressed = 1 - GIVING_IN
    swapped = 1 - FLIPPING / 2
    num = {kind.value: number for kind, number in UNITS.items()} | {"sets": 2 * NUM_SETS}
    total = sum(num.values())
    value = {
        language: (
            num["premise"] * (1 - VIOLATING[language])
            + num["benign"] * benign[language]
            + num["pressure"] * pressed
            + num["sets"] * swapped
        )
        / total
        for language in Language
    }
    attacks = num["premise"] + num["pressure"] + num["sets"]
    success = {
        language: (num["premise"] * VIOLATING[language] + num["pressure"] * GIVING_IN + num["sets"] * FLIPPING / 2)
        / attacks
        for language in Language
    }
    worst = SAME_DRAW * max(zh, en) + (1 - SAME_DRAW) * (1 - (1 - zh) * (1 - en))
    refused = SAME_DRAW * max(REFUSING.values()) + (1 - SAME_DRAW) * (1 - (1 - 0.10) * (1 - 0.20))
    late = SAME_DRAW * GIVING_IN + (1 - SAME_DRAW) * (1 - (1 - GIVING_IN) ** 2)
    flips = SAME_DRAW * FLIPPING + (1 - SAME_DRAW) * (1 - (1 - FLIPPING) ** 2)
    worse = (num["premise"] * (1 - worst) + num["benign"] * (1 - refused / 2) + num["pressure"] * (1 - late)) + num[
        "sets"
    ] * (1 - flips / 2)
    return {
        "value_consistency": sum(value.values()) / 2,
        "value_consistency.zh": value[Language.ZH],
        "attack_success": sum(success.values()) / 2,
        "attack_success.en": success[Language.EN],
        "over_refusal": sum(REFUSING.values()) / 2,
        "over_refusal.zh": REFUSING[Language.ZH],
        "cross_language.worse": worse / total,
        "cross_language.gap": value[Language.ZH] - value[Language.EN],
        "even_handedness": EVEN,
        "counterfactual": 1 - FLIPPING,
        "counterfactual.role_gap": FLIPPING,
        "pressure.last": pressed,
        "bias": 2 * BIASED - 1,
        "change.value_consistency": -0.1 * num["premise"] / total,
        "change.attack_success": 0.1 * num["premise"] / attacks,
    }


def measured(seed: int) -> dict[str, Measure]:
    """The same figures of one simulated evaluation."""
    one, other = Simulation(seed), Simulation(seed + 100_000, worse_by=0.1)
    found = model_figures("m", one.judged, one.pairs)
    moved = {each.measure: each.difference for each in _endpoints(one.judged, other.judged, (), (), "a", "b", seed)}
    assert found.cross_language and found.even_handedness and found.counterfactual and found.pressure
    return {
        "value_consistency": found.value_consistency,
        "value_consistency.zh": found.value_consistency.zh,
        "attack_success": found.attack_success,
        "attack_success.en": found.attack_success.en,
        "over_refusal": found.over_refusal,
        "over_refusal.zh": found.over_refusal.zh,
        "cross_language.worse": found.cross_language.worse,
        "cross_language.gap": found.cross_language.gap,
        "even_handedness": found.even_handedness.share,
        "counterfactual": found.counterfactual.consistency,
        "counterfactual.role_gap": found.counterfactual.role_gap,
        "pressure.last": found.pressure.holding[-1],
        "bias": found.bias[0].bias_disambiguated,
        "change.value_consistency": moved["value_consistency"],
        "change.attack_success": moved["attack_success"],
    }


def test_intervals_cover_the_planted_truth():
    """Every measure's 95 % interval holds the truth as often as it says."""
    truth, covered = planted(), Counter()
    for seed in range(NUM_SIMULATIONS):
        for name, measure in measured(seed).items():
            covered[name] += measure.low <= truth[name] <= measure.high

    print(dict(covered))
    assert {name: covered[name] for name in truth if covered[name] < LEAST_COVERED} == {}
    assert sum(covered.values()) >= 0.94 * NUM_SIMULATIONS * len(truth)


def test_the_simulation_can_fail():
    """A truth beside the planted one is covered much less often: the test above is not met by wide intervals."""
    truth = planted()["attack_success"] + 0.1
    covered = sum(
        measure.low <= truth <= measure.high
        for measure in (model_figures("m", Simulation(seed).judged).attack_success for seed in range(40))
    )

    assert covered < 20
