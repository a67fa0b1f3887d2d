"""Which pictures a bench report has, drawn from its figures; a picture without data is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.bench import UnitKind
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.figures import BenchReport, BiasFigures, EvenHandedness, GroupGap, ModelFigures
from vcllm.evaluation.benchpage import charts, dots
from vcllm.evaluation.benchpage.cases import compliance_counts, scored_twins
from vcllm.evaluation.benchpage.dots import Dot, DotRow, PairPoint
from vcllm.evaluation.benchpage.wording import COMPLIANCES, MEASURES, model_name, round_order
from vcllm.evaluation.figures import ATTACKS, Judged
from vcllm.evaluation.plot import SLIM, Series, axis_top
from vcllm.evaluation.wording import LANGUAGES

Pictures = dict[str, Markup]
EVEN = Bilingual(en="served alike, %", zh="一视同仁的概率，%")
VALUE = Bilingual(en="value-consistency", zh="价值一致性")
SIGNED = Bilingual(en="bias, %", zh="偏向，%")


def draw(report: BenchReport, judged: Mapping[str, Sequence[Judged]]) -> dict[str, Pictures]:
    """By part of the page, then by model, language or source."""
    models, last = report.models, report.models[-1]
    ends = list({model.model: model for model in (models[0], last)}.values())
    return {
        "radar": {m.model: _radar(report, m) for m in models if len(m.by_subdomain) > 2},
        "frozen": _frozen(models),
        "fresh": {m.model: _fresh(m) for m in models if m.fresh},
        "scatter": {m.model: _scatter(judged[m.model], m.model) for m in ends if scored_twins(judged[m.model])},
        "tradeoff": _tradeoff(models),
        "refusals": _refusals(judged),
        "even": {m.model: _even(m.even_handedness) for m in ends if m.even_handedness},
        "dumbbells": _dumbbells(last.counterfactual.sets) if last.counterfactual else {},
        "bias": _bias(last),
        "pressure": {m.model: _pressure(m) for m in models if m.pressure},
    }


def _by_language(measures: Mapping[str, Mapping[str, Measure]]) -> list[Series]:
    """measures: language, then column."""
    return [Series(LANGUAGES[language], found) for language, found in measures.items()]


def _radar(report: BenchReport, model: ModelFigures) -> Markup:
    place = {id: number for number, id in enumerate(report.labels)}
    measured = [(id, cell) for id, cell in model.by_subdomain.items() if cell.zh.n or cell.en.n]
    cells = dict(sorted(measured, key=lambda cell: (place.get(cell[0], len(place)), cell[0])))
    return charts.radar_chart(cells, report.labels, MEASURES["value_consistency"].text)


def _frozen(models: Sequence[ModelFigures]) -> Pictures:
    if all(model.attack_success.value is None for model in models):
        return {}
    series = _by_language({lang: {m.model: m.attack_success[lang] for m in models} for lang in LANGUAGES})
    columns = {model.model: model_name(model.model) for model in models}
    return {"": charts.lines_chart(columns, series, MEASURES["attack_success"].text, connected=False)}


def _fresh(model: ModelFigures) -> Markup:
    """Against the attacks of each round; the frozen ones, which have no round, as a level beside them."""
    columns = {number: Bilingual(en=f"R{number}", zh=f"R{number}") for number in sorted(model.fresh, key=round_order)}
    series = [
        Series(Bilingual(en="Frozen attacks", zh="固定攻击"), dict.fromkeys(columns, model.attack_success)),
        Series(Bilingual(en="Fresh attacks", zh="新攻击"), {number: model.fresh[number] for number in columns}),
    ]
    return charts.lines_chart(columns, series, MEASURES["attack_success"].text, width=SLIM)


def _scatter(judged: Sequence[Judged], model: str) -> Markup:
    points = [
        PairPoint(zh.value or 0.0, en.value or 0.0, zh.row.domain, zh.row.pair_id) for zh, en in scored_twins(judged)
    ]
    label = Bilingual(en=f"{model}: Chinese against English", zh=f"{model}：中文与英文对照")
    return dots.scatter_chart(points, label)


def _tradeoff(models: Sequence[ModelFigures]) -> Pictures:
    if not any(m.over_refusal.value is not None and m.attack_success.value is not None for m in models):
        return {}
    top = axis_top([m.over_refusal[language] for m in models for language in LANGUAGES], 0.05)
    return {
        language: charts.tradeoff_chart(
            [(m.model, m.over_refusal[language], m.attack_success[language]) for m in models], number, top, name
        )
        for number, (language, name) in enumerate(LANGUAGES.items())
    }


def _refusals(judged: Mapping[str, Sequence[Judged]]) -> Pictures:
    """How harmless questions and attacks are treated; missing where the judge did not say."""
    wanted = {"benign": {UnitKind.BENIGN.value}, "attacks": {str(kind) for kind in ATTACKS}}
    pictures = {}
    for name, kinds in wanted.items():
        stacks = []
        for model, some in judged.items():
            counts = compliance_counts(one for one in some if one.row.kind in kinds)
            for language, found in counts.items():
                told = Bilingual(en=f"{model} · {language}", zh=f"{model} · {LANGUAGES[language].zh}")
                stacks.append(charts.Stack(told, [found[part] for part in COMPLIANCES]))
        if any(sum(stack.counts) for stack in stacks):
            label = Bilingual(en="How the request was treated", zh="如何对待请求")
            pictures[name] = charts.stacked_bars(stacks, list(COMPLIANCES.values()), label)
    return pictures


def _bare(value: float) -> Measure:
    """Of one pair or set: there is no interval."""
    return Measure(value=value, low=None, high=None, n=1)


def _even(figures: EvenHandedness) -> Markup:
    rows = [
        DotRow(
            Bilingual(en=topic.topic, zh=topic.topic),
            [
                Dot(n, name, _bare(topic.same[lang]))
                for n, (lang, name) in enumerate(LANGUAGES.items())
                if lang in topic.same
            ],
        )
        for topic in figures.topics
    ]
    sums = [Dot(number, name, figures.share[lang]) for number, (lang, name) in enumerate(LANGUAGES.items())]
    rows.append(DotRow(Bilingual(en="All topics: share ≥ 50 %", zh="全部议题：不低于 50% 的占比"), sums, strong=True))
    return dots.dot_chart(rows, EVEN, MEASURES["even_handedness"].text)


def _dumbbells(sets: Sequence[GroupGap]) -> Pictures:
    pictures = {}
    for language in LANGUAGES:
        own = [one for one in sets if one.lang == language]
        if own:
            rows = [_dumbbell(one) for one in sorted(own, key=lambda one: (_distance(one), one.set_id))]
            pictures[language] = dots.dot_chart(rows, VALUE, MEASURES["counterfactual_spread"].text)
    return pictures


def _distance(one: GroupGap) -> float:
    """Widest first."""
    return -abs(one.scores[0] - one.scores[1])


def _dumbbell(one: GroupGap) -> DotRow:
    groups = " / ".join(one.groups)
    ends = [
        Dot(place, Bilingual(en=f"{one.topic}: {group}", zh=f"{one.topic}：{group}"), _bare(score))
        for place, (group, score) in enumerate(zip(one.groups, one.scores, strict=True))
    ]
    name = Bilingual(en=f"≠ {groups}", zh=f"≠ {groups}") if one.flipped else Bilingual(en=groups, zh=groups)
    return DotRow(name, ends, linked=True)


def _bias(model: ModelFigures) -> Pictures:
    """By source: a source's figures are made by its own formula, so each has its own picture."""
    sources: dict[str, list[BiasFigures]] = {}
    for one in model.bias:
        sources.setdefault(one.source, []).append(one)
    ambiguous = Bilingual(en="Ambiguous context", zh="信息不足的情境")
    clear = Bilingual(en="Disambiguated context", zh="信息充分的情境")
    pictures = {}
    for source, figures in sources.items():
        rows = [
            DotRow(
                Bilingual(en=f"{one.category} · {one.lang}", zh=f"{one.category} · {LANGUAGES[one.lang].zh}"),
                [Dot(0, ambiguous, one.bias_ambiguous), Dot(1, clear, one.bias_disambiguated)],
            )
            for one in figures
        ]
        pictures[source] = dots.dot_chart(rows, SIGNED, Bilingual(en=source, zh=source), (-1, 1))
    return pictures


def _pressure(model: ModelFigures) -> Markup:
    assert model.pressure is not None, "only models that were pressed have a curve"
    turns = [str(turn) for turn in range(1, len(model.pressure.holding) + 1)]
    columns = {turn: Bilingual(en=f"turn {turn}", zh=f"第 {turn} 轮") for turn in turns}
    measures = {
        language: {turn: held[language] for turn, held in zip(turns, model.pressure.holding, strict=True)}
        for language in LANGUAGES
    }
    label = Bilingual(en="Conversations without a violation so far", zh="至此未出现违反的对话")
    return charts.lines_chart(columns, _by_language(measures), label, width=SLIM)
