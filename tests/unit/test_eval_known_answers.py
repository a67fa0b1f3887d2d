"""Models whose faults are known get the verdicts they deserve, from question to figure."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests import bench_world as world
from vcllm.charter import load_charter
from vcllm.contracts.answers import Decoding
from vcllm.contracts.figures import ModelFigures
from vcllm.evaluation.comparing import compare_models, is_shown
from vcllm.evaluation.figures import Judged, model_figures
from vcllm.evaluation.generate import generate
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.stage import cases_of, judge_answers, judge_pairs, mirror_cases

CHARTER = load_charter()
Judgements = tuple[list[Judged], list, ModelFigures]


async def evaluate(model: world.Model, folder: Path) -> Judgements:
    """All stages on one model."""
    rows = world.rows()
    async with world.model_endpoint(model) as asked, world.judge_endpoint() as judging:
        answers = await generate(
            rows, asked, folder / "answers.jsonl", model="m", decoding=Decoding(), charter=CHARTER, concurrency=8
        )
        judge = ModelJudge(judging, CHARTER, "scripted")
        cases = cases_of(rows, answers)
        verdicts = await judge_answers(cases, judge, folder / "verdicts.jsonl")
        pairs = await judge_pairs(mirror_cases(cases), judge, folder / "pairs.jsonl")
    judged = [Judged(case.row, case.answer, verdict) for case, verdict in zip(cases, verdicts, strict=True)]
    return judged, pairs, model_figures("m", judged, pairs, Decoding())


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Judgements]:
    """Every scripted model, evaluated once."""
    models = {
        "refuses": world.always_refuses,
        "agrees": world.always_agrees,
        "fair": world.even_handed,
        "zh_biased": world.biased_in_chinese,
        "one_sided": world.one_sided,
        "gives_in": world.gives_in,
        "random": world.at_random,
    }
    return {name: asyncio.run(evaluate(model, tmp_path_factory.mktemp(name))) for name, model in models.items()}


@pytest.fixture
def figures(results) -> dict[str, ModelFigures]:
    return {name: result[2] for name, result in results.items()}


def test_nothing_is_left_unscored(figures):
    """The scripted judge can read every scripted answer."""
    assert {name: one.num_unscored for name, one in figures.items()} == dict.fromkeys(figures, 0)


def test_refusing_everything_is_no_attack_success_and_full_over_refusal(figures):
    """The model that a table of attack success alone would crown."""
    refuses = figures["refuses"]

    assert refuses.attack_success.value == 0
    assert refuses.over_refusal.value == 1
    assert refuses.attack_refusal.value == 1
    assert refuses.benign_helpful.value == 0
    assert refuses.tradeoff.value == 0


def test_agreeing_with_everything_loses_every_attack_and_refuses_nothing(figures):
    """In both languages alike."""
    agrees = figures["agrees"]

    assert agrees.attack_success.zh.value == agrees.attack_success.en.value == 1
    assert agrees.over_refusal.value == 0
    assert agrees.severity.value == pytest.approx(1, abs=0.05)
    assert agrees.cross_language is not None
    assert agrees.cross_language.gap.value == pytest.approx(0)
    assert agrees.cross_language.worse.value < 0.3


def test_a_fair_model_is_found_fair(figures):
    """On every endpoint."""
    fair = figures["fair"]

    assert fair.value_consistency.value > 0.98
    assert fair.attack_success.value == fair.over_refusal.value == 0
    assert fair.even_handedness.share.value == 1
    assert fair.counterfactual.consistency.value == 1
    assert [turn.value for turn in fair.pressure.holding] == [1, 1, 1, 1]
    assert fair.benign_helpful.value == 1


def test_zero_violations_still_leave_room_for_some(figures):
    """The rule of three: an upper bound above zero for a share of which nothing was seen."""
    attacks = figures["fair"].attack_success

    assert attacks.low == 0
    assert 0 < attacks.high <= 3 / 36 + 1e-9


def test_bias_in_chinese_only_shows_as_a_gap_between_languages(figures):
    """Not as a moderate figure over both."""
    biased = figures["zh_biased"]

    assert biased.attack_success.zh.value == 1
    assert biased.attack_success.en.value == 0
    assert biased.cross_language.gap.high < -0.5
    assert biased.cross_language.worse.value < 0.3 < biased.value_consistency.value
    assert biased.cross_language.stance_agreement.value < 0.3


def test_serving_one_side_only_is_not_even_handed(figures):
    """Refusals of the other side show in both the share and the gap."""
    one_sided = figures["one_sided"].even_handedness

    assert one_sided.share.value == 0
    assert one_sided.refusal_gap.value == -1
    assert one_sided.position_consistency.value == 1


def test_treating_groups_differently_shows_as_flips(figures):
    """And as a gap in favour of the advantaged group."""
    swapped = figures["one_sided"].counterfactual

    assert swapped.consistency.value == 0
    assert swapped.role_gap.value > 0.9
    assert all(each.flipped for each in swapped.sets)


def test_giving_in_under_pressure_shows_at_its_turn(figures):
    """Two turns held, none after."""
    pressed = figures["gives_in"].pressure

    assert [turn.value for turn in pressed.holding] == [1, 1, 0, 0]
    assert pressed.turn_of_flip.value == 3
    assert pressed.num_flips.value == 1


def test_answering_at_random_covers_a_half(figures):
    """The interval of attack success holds the planted one half."""
    at_random = figures["random"].attack_success

    assert at_random.low < 0.5 < at_random.high


def test_a_planted_difference_is_shown_and_no_other(results):
    """Fair against biased: value-consistency, attack success and the worse language move, over-refusal does not."""
    judged = {name: results[name][0] for name in ("zh_biased", "fair")}
    pairs = {name: results[name][1] for name in ("zh_biased", "fair")}
    found = compare_models(judged, pairs, [("zh_biased", "fair")])
    shown = {one.measure for one in found if one.family == "primary" and is_shown(one)}

    assert shown == {"value_consistency", "attack_success", "cross_language"}


def test_a_model_does_not_differ_from_itself(results):
    """Nothing is shown, and every p is one."""
    judged, pairs = results["random"][0], results["random"][1]
    found = compare_models({"a": judged, "b": judged}, {"a": pairs, "b": pairs}, [("a", "b")])

    assert not [one for one in found if is_shown(one)]
    assert {one.p for one in found} == {1.0}
