"""Every figure of a model under the name it has in the table: the one list from which table and page are filled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from vcllm.contracts.base import Language
from vcllm.contracts.evaluation import UNMEASURED, CellMeasures, Measure, PooledMeasure
from vcllm.contracts.figures import Counterfactual, CrossLanguage, EvenHandedness, ModelFigures, Quality
from vcllm.evaluation.benchpage.wording import MEASURES, Name

BOTH = "both"
LANGUAGES = tuple(language.value for language in Language)


@dataclass(frozen=True)
class Figure:
    """One number with its interval and n."""

    measure: str
    group: str
    """A sub-domain, kind, style, round, turn, topic or set; empty for the whole."""
    language: str
    """`zh`, `en`, or `both` together; of pairs of languages always `both`."""
    value: Measure


@dataclass(frozen=True)
class FigureRow:
    """One figure in one language, model beside model."""

    measure: str
    language: str
    height: int
    """Rows of its measure, on the first of them; 0 on the others."""
    cells: Mapping[str, Measure]
    """By model."""

    @property
    def name(self) -> Name:
        return MEASURES[self.measure]


def figure_rows(models: Sequence[ModelFigures], measures: Sequence[str]) -> list[FigureRow]:
    """Figures without a group, each over both languages first; what no model was measured on is left out."""
    found = {
        (one.measure, one.language, model.model): one.value
        for model in models
        for one in every_figure(model)
        if not one.group and one.measure in measures
    }
    rows: list[FigureRow] = []
    for measure in measures:
        own = {language: _cells(found, models, measure, language) for language in (BOTH, *LANGUAGES)}
        kept = [language for language, cells in own.items() if any(m.value is not None for m in cells.values())]
        for place, language in enumerate(kept):
            rows.append(FigureRow(measure, language, 0 if place else len(kept), own[language]))
    return rows


def _cells(
    found: Mapping[tuple[str, str, str], Measure], models: Iterable[ModelFigures], measure: str, language: str
) -> dict[str, Measure]:
    return {model.model: found.get((measure, language, model.model), UNMEASURED) for model in models}


# Where the figures of a model are.


def every_figure(model: ModelFigures) -> Iterator[Figure]:
    """In the order of the report's sections."""
    for name in ("value_consistency", "attack_success", "severity", "over_refusal", "partial", "benign_helpful"):
        yield from _pooled(name, getattr(model, name))
    yield from _pooled("attack_refusal", model.attack_refusal)
    yield Figure("tradeoff", "", BOTH, model.tradeoff)
    yield from _cells_by("value_consistency", model.by_subdomain)
    yield from _cells_by("attack_success", model.attacks_by_subdomain)
    for name, groups in (("kind", model.attacks_by_kind), ("style", model.attacks_by_style)):
        yield from chain.from_iterable(_pooled("attack_success", m, f"{name}:{id}") for id, m in groups.items())
    yield from chain.from_iterable(_pooled("fresh_attack_success", m, id) for id, m in model.fresh.items())
    if model.cross_language:
        yield from _languages(model.cross_language)
    if model.even_handedness:
        yield from _sides(model.even_handedness)
    if model.counterfactual:
        yield from _groups(model.counterfactual)
    if model.pressure:
        yield from chain.from_iterable(
            _pooled("holding", m, f"turn-{turn}") for turn, m in enumerate(model.pressure.holding, start=1)
        )
        yield Figure("turn_of_flip", "", BOTH, model.pressure.turn_of_flip)
        yield Figure("num_flips", "", BOTH, model.pressure.num_flips)
    yield from _choices(model)
    yield from _quality(model.quality)
    yield from (Figure("reward", "", language, m) for language, m in model.reward.items())
    yield from (Figure("num_unscored", why, BOTH, _bare(num, model.num_answers)) for why, num in model.unscored.items())


def _bare(value: float | None, n: int) -> Measure:
    """A number that has no interval, such as a count."""
    return Measure(value=value, low=None, high=None, n=n)


def _pooled(measure: str, figure: PooledMeasure, group: str = "") -> Iterator[Figure]:
    yield Figure(measure, group, "zh", figure.zh)
    yield Figure(measure, group, "en", figure.en)
    yield Figure(measure, group, BOTH, Measure(value=figure.value, low=figure.low, high=figure.high, n=figure.n))


def _cells_by(measure: str, cells: Mapping[str, CellMeasures]) -> Iterator[Figure]:
    for subdomain, cell in cells.items():
        yield Figure(measure, subdomain, "zh", cell.zh)
        yield Figure(measure, subdomain, "en", cell.en)


def _languages(figures: CrossLanguage) -> Iterator[Figure]:
    both = partial(Figure, group="", language=BOTH)
    yield both("cross_language", value=figures.worse)
    yield both("language_gap", value=figures.gap)
    if figures.judge_bias is not None:
        yield both("judge_bias", value=figures.judge_bias)
    if figures.gap_corrected is not None:
        yield both("language_gap_corrected", value=_bare(figures.gap_corrected, figures.gap.n))
    yield both("dispersion", value=figures.dispersion)
    yield both("stance_agreement", value=figures.stance_agreement)
    if figures.stance_kappa is not None:
        yield both("stance_kappa", value=_bare(figures.stance_kappa, figures.stance_agreement.n))
    yield both("language_refusal_gap", value=figures.refusal_gap)


def _sides(figures: EvenHandedness) -> Iterator[Figure]:
    yield from _pooled("even_handedness", figures.share)
    yield Figure("side_refusal_gap", "", BOTH, figures.refusal_gap)
    for name in ("hedging_gap", "length_ratio", "position_consistency"):
        yield Figure(name, "", BOTH, getattr(figures, name))
    for topic in figures.topics:
        yield from (Figure("even_topic", topic.set_id, language, _bare(p, 1)) for language, p in topic.same.items())


def _groups(figures: Counterfactual) -> Iterator[Figure]:
    yield from _pooled("counterfactual_consistency", figures.consistency)
    yield from _pooled("counterfactual_spread", figures.spread)
    yield Figure("role_gap", "", BOTH, figures.role_gap)
    for one in figures.sets:
        for group, score in zip(one.groups, one.scores, strict=True):
            yield Figure("group_value", f"{one.set_id}:{group}", one.lang.value, _bare(score, 1))


def _choices(model: ModelFigures) -> Iterator[Figure]:
    for bias in model.bias:
        group, language = f"{bias.source}:{bias.category}", bias.lang.value
        for name in ("accuracy_ambiguous", "accuracy_disambiguated", "bias_ambiguous", "bias_disambiguated"):
            yield Figure(name, group, language, getattr(bias, name))
        asked = bias.accuracy_ambiguous.n + bias.accuracy_disambiguated.n
        yield Figure("num_unparsable", group, language, _bare(bias.unparsable, asked))
    for choice in model.choices:
        group, language = f"{choice.source}:{choice.category}", choice.lang.value
        yield Figure("accuracy", group, language, choice.accuracy)
        yield Figure("num_unparsable", group, language, _bare(choice.unparsable, choice.accuracy.n))


def _quality(quality: Quality) -> Iterator[Figure]:
    for name in ("language_match", "empty", "truncated", "repeated", "broken"):
        yield from _pooled(name, getattr(quality, name))
    for language, sizes in quality.length.items():
        n = quality.language_match[language].n
        yield from (Figure("length", f"p{p}", language, _bare(s, n)) for p, s in zip((10, 50, 90), sizes, strict=True))
    for language, share in quality.distinct_2.items():
        yield Figure("distinct_2", "", language, _bare(share, quality.language_match[language].n))
