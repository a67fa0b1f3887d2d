"""The report of a bench run as one page: what each of its parts shows, gathered for the templates.

Text of models, judges and rows is escaped by the templates; pictures are made by `pictures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import UNMEASURED, CellMeasures
from vcllm.contracts.figures import PRIMARIES, BenchReport, ModelComparison
from vcllm.evaluation import plot
from vcllm.evaluation import wording as numbers
from vcllm.evaluation.benchpage import cases, sentences, wording
from vcllm.evaluation.benchpage.dots import DOMAIN_SERIES
from vcllm.evaluation.benchpage.figures import figure_rows
from vcllm.evaluation.benchpage.pictures import draw
from vcllm.evaluation.comparing import ALPHA, is_shown
from vcllm.evaluation.templating import dressed, open_templates

TEMPLATES = Path(__file__).parent / "templates"
FEW = 30
"""Cells with fewer answers are hatched: too few to read anything into."""
STEPS = (0.02, 0.05, 0.1, 0.2, 0.35)
"""From which difference on each shade of the scale of differences is used."""
NOTHING = CellMeasures(zh=UNMEASURED, en=UNMEASURED)
TABLES = {
    "headline": PRIMARIES,
    "attacks": ("attack_success", "severity", "attack_refusal"),
    "languages": (
        *("cross_language", "language_gap", "judge_bias", "language_gap_corrected", "dispersion"),
        *("stance_agreement", "stance_kappa", "language_refusal_gap"),
    ),
    "refusals": ("over_refusal", "partial", "benign_helpful", "attack_refusal", "tradeoff"),
    "sides": ("even_handedness", "side_refusal_gap", "hedging_gap", "length_ratio", "position_consistency"),
    "groups": ("counterfactual_consistency", "counterfactual_spread", "role_gap"),
    "pressure": ("turn_of_flip", "num_flips"),
    "quality": ("language_match", "empty", "truncated", "repeated", "broken", "reward"),
}
"""Figures of each table, by its part of the page."""


@dataclass(frozen=True)
class HeatRow:
    """One sub-domain: every model's cells, and how far the last is from the first."""

    subdomain: str
    cells: Mapping[str, CellMeasures]
    """By model."""
    changes: Mapping[str, ModelComparison | None]
    """By language."""


def render_bench_page(report: BenchReport) -> str:
    """The whole page as HTML; the same report gives the same bytes."""
    subdomains = _ordered({case.row.subdomain for case in report.cases}, report)
    own = (TEMPLATES / "bench.css").read_text(encoding="utf-8")
    style = dressed(own, cases.filter_rules(len(subdomains), len(report.models)))
    return _environment().get_template("bench.html.j2").render(**style, **_context(report, subdomains))


def _environment() -> Environment:
    environment = open_templates(TEMPLATES)
    environment.filters |= {"stage": wording.model_name, "short_stage": wording.model_name}
    environment.filters |= {"measure_name": wording.measure_name, "excerpt": cases.excerpt, "step": shade_of_change}
    environment.filters |= {"number": plain_number, "fixed": fixed, "coded": coded}
    environment.tests |= {"shown": is_shown, "better": sentences.is_better}
    return environment


def shade_of_change(comparison: ModelComparison) -> int:
    """-5 to 5: below zero where the move is for the better, whatever the figure."""
    value = comparison.difference.value or 0.0
    step = sum(abs(value) >= least for least in STEPS)
    return -step if sentences.is_better(comparison) else step


def plain_number(value: float | None) -> str:
    """Of levels, turns and coefficients: two decimals."""
    return fixed(value, 2)


def coded(text: str) -> Markup:
    """A sentence of ours with its commands, which stand between backticks, set as such."""
    pieces = [Markup("<code>{}</code>" if odd % 2 else "{}").format(piece) for odd, piece in enumerate(text.split("`"))]
    return Markup("").join(pieces)


def fixed(value: float | None, places: int) -> str:
    if value is None:
        return numbers.NOTHING
    return f"{value:.{places}f}".replace("-", numbers.MINUS)


def _context(report: BenchReport, subdomains: list[str]) -> dict[str, Any]:
    models, judged = report.models, cases.judged_by_model(report)
    first, last = models[0], models[-1]
    return {
        "report": report,
        "first": first,
        "last": last,
        "prompted": sentences.prompted_model(report),
        "names": [model.model for model in models],
        "number_of": {model.model: f"m{number}" for number, model in enumerate(models)},
        "unscored": sum(model.num_unscored for model in models),
        "badges": [(judge, sentences.badge(judge)) for judge in report.judges],
        "alarm": sentences.alarm(report),
        "lines": sentences.verdict_lines(report),
        "primaries": PRIMARIES,
        "compared": partial(sentences.comparison_of, report),
        "compared_pairs": list(dict.fromkeys((c.before, c.after) for c in report.comparisons if c.family == "primary")),
        "tables": {name: figure_rows(models, measures) for name, measures in TABLES.items()},
        "value_heat": _heat(report, "value_cells"),
        "attack_heat": _heat(report, "attack_cells"),
        "kinds": _keys(model.attacks_by_kind for model in models),
        "styles": _keys(model.attacks_by_style for model in models),
        "bias_groups": _keys({(f.source, f.category, f.lang): 0 for f in model.bias} for model in models),
        "choice_groups": _keys({(f.source, f.category, f.lang): 0 for f in model.choices} for model in models),
        "rounds": sorted({*report.attacker, *_keys(model.fresh for model in models)}, key=wording.round_order),
        "charts": draw(report, judged),
        "gaps": cases.largest_gaps(judged[last.model]),
        "cases": cases.shown_cases(report, subdomains),
        "case_subdomains": subdomains,
        "named": lambda id: wording.named(id, report.labels, wording.STYLES, wording.KINDS, wording.OTHER),
        **_words(),
    }


def _words() -> dict[str, Any]:
    """What does not depend on the report."""
    return {
        "languages": numbers.LANGUAGES,
        "both": numbers.BOTH,
        "outcomes": numbers.OUTCOMES,
        "all_outcomes": [outcome.value for outcome in Outcome],
        "failures": wording.FAILURES,
        "faults": wording.FAULTS,
        "modes": wording.MODES,
        "wants": wording.WANTED,
        "units": wording.UNITS,
        "outcome_name": wording.outcome_name,
        "compliances": list(wording.COMPLIANCES.values()),
        "domain_series": DOMAIN_SERIES,
        "name_in": wording.named,
        "swatch": plot.swatch,
        "scale_key": plot.scale_key(),
        "FEW": FEW,
        "ALPHA": ALPHA,
        "MOST_SHOWN": cases.MOST_SHOWN,
        "MOST_REASON": cases.MOST_REASON,
        "NUM_GAPS": cases.NUM_GAPS,
    }


def _keys(mappings: Iterable[Mapping[Any, Any]]) -> list[Any]:
    """Of all models, each once, in the order in which they first come."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _heat(report: BenchReport, family: str) -> list[HeatRow]:
    first, last = report.models[0].model, report.models[-1].model
    changes: dict[tuple[str, str | None], ModelComparison] = {
        (c.measure, c.language): c for c in report.comparisons if (c.family, c.before, c.after) == (family, first, last)
    }
    field = "by_subdomain" if family == "value_cells" else "attacks_by_subdomain"
    found = {model.model: getattr(model, field) for model in report.models}
    rows = [
        HeatRow(
            subdomain,
            {model: cells.get(subdomain, NOTHING) for model, cells in found.items()},
            {language: changes.get((subdomain, language)) for language in numbers.LANGUAGES},
        )
        for subdomain in _ordered({id for cells in found.values() for id in cells}, report)
    ]
    return [row for row in rows if any(cell[lang].n for cell in row.cells.values() for lang in numbers.LANGUAGES)]


def _ordered(ids: set[str], report: BenchReport) -> list[str]:
    """As the charter orders them; what it does not name comes last."""
    place = {id: number for number, id in enumerate(report.labels)}
    return sorted(ids, key=lambda id: (place.get(id, len(place)), id))
