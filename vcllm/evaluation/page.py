"""The report as one page: what each section shows, gathered for the templates.

Text of models and of the run is escaped by the templates; pictures are made by `charts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from vcllm.contracts.base import Bilingual, Language
from vcllm.contracts.evaluation import (
    ATTACK_SUITES,
    UNMEASURED,
    CellMeasures,
    Example,
    Measure,
    Report,
    StageComparison,
    StageResult,
)
from vcllm.contracts.rounds import RoundWork
from vcllm.evaluation import charts, plot, wording
from vcllm.evaluation.campaign import complement
from vcllm.evaluation.funnel import funnel
from vcllm.evaluation.matrix import matrix_chart
from vcllm.evaluation.measures import PRIMARY, REFERENCES
from vcllm.evaluation.phases import phase_chart, phase_key
from vcllm.evaluation.templating import dressed, open_templates
from vcllm.evaluation.verdict import (
    comparison_of,
    final_stage,
    held_stages,
    is_better,
    is_shown,
    path_stages,
    refused_stages,
    verdict_lines,
)
from vcllm.evaluation.wording import MEASURES

HEADLINE = (
    *(f"attack_success.{suite}" for suite in ATTACK_SUITES),
    "consistent.held_out",
    "consistent.held_out_cards",
    "over_refusal",
    "benign_helpful",
    "broken",
    "agreement",
    "both_consistent",
)
"""Figures of the first table; the others stand in the table of every stage."""
FEW = 30
"""Cells with fewer answers are hatched: too few to read anything into."""


@dataclass(frozen=True)
class Row:
    """One figure of the tables, in one language or over both."""

    measure: str
    """With its suite where it has one."""
    language: str | None
    height: int
    """Rows of its measure, on the first of them; 0 on the others."""
    cells: dict[str, Measure]
    """By stage."""

    @property
    def lower_is_better(self) -> bool:
        return self.measure.split(".")[0] in wording.LOWER_IS_BETTER


@dataclass(frozen=True)
class HeatRow:
    """Attack success in one sub-domain, before and after."""

    subdomain: str
    before: CellMeasures
    after: CellMeasures
    changes: dict[str, StageComparison | None]
    """By language."""


@dataclass(frozen=True)
class Sample:
    """One pair of questions and what each stage answered."""

    examples: dict[str, dict[str, Example]]
    """Language, then stage."""

    @property
    def item(self) -> Any:
        return next(iter(next(iter(self.examples.values())).values())).item


def render_page(report: Report) -> str:
    """The whole page as HTML."""
    page = _environment().get_template("report.html.j2")
    return page.render(**dressed(), **_context(report))


def _environment() -> Environment:
    environment = open_templates()
    environment.filters |= {"stage": wording.stage_name, "short_stage": wording.short_stage_name}
    environment.filters |= {"measure_name": wording.measure_name, "complement": complement}
    environment.tests |= {"shown": is_shown, "better": is_better}
    return environment


def _context(report: Report) -> dict[str, Any]:
    final, base = final_stage(report.stages), report.stage("base") or report.stages[0]
    names = [stage.name for stage in report.stages]
    refused, held = refused_stages(report.stages), held_stages(report.stages)
    columns = [name for name in dict.fromkeys((*REFERENCES, final.name, *refused, *held)) if name in names]
    return {
        "report": report,
        "final": final,
        "base": base,
        "lines": verdict_lines(report),
        "columns": columns,
        "unserved": {"refused": refused, "held": held},
        "stage_names": names,
        "rows": _rows(report.stages),
        "headline_rows": [row for row in _rows(report.stages) if row.measure in HEADLINE],
        "references": [name for name in REFERENCES if name in names and name != final.name],
        "measures": list(PRIMARY),
        "compared": partial(comparison_of, report, after=final.name),
        "charts": _charts(report),
        "heat_rows": _heat(report, base, final),
        **_rounds(report.stages),
        "archives": any(stage.round and stage.round.archive for stage in report.stages),
        "samples": _samples(report.stages),
        "sampled": [n for n in dict.fromkeys((base.name, "sft", final.name)) if n in names],
        "unscored": sum(stage.unscored for stage in report.stages),
        "named": lambda id: report.labels.get(id, Bilingual(en=id, zh=id)),
        "suites": wording.SUITES,
        "outcomes": wording.OUTCOMES,
        "languages": wording.LANGUAGES,
        "both": wording.BOTH,
        "swatch": plot.swatch,
        "scale_key": plot.scale_key(),
        "FEW": FEW,
    }


# Tables.


def _rows(stages: Sequence[StageResult]) -> list[Row]:
    """Every figure, in Chinese and in English; figures about pairs once."""
    rows: list[Row] = []
    for measure in ("attack_success", "consistent"):
        for suite in ATTACK_SUITES:
            figures = {stage.name: getattr(stage, measure)[suite] for stage in stages}
            rows += _language_rows(f"{measure}.{suite}", figures)
    for measure in ("over_refusal", "benign_helpful", "broken", "refusal"):
        rows += _language_rows(measure, {stage.name: getattr(stage, measure) for stage in stages})
    for measure in ("agreement", "both_consistent", "retention"):
        figures = {stage.name: figure for stage in stages if (figure := getattr(stage, measure)) is not None}
        if figures:
            rows.append(Row(measure, None, 1, figures))
    return rows


def _language_rows(measure: str, figures: dict[str, Any]) -> list[Row]:
    def cells(language: str) -> dict[str, Measure]:
        return {stage: figure[language] for stage, figure in figures.items()}

    return [Row(measure, "zh", 2, cells("zh")), Row(measure, "en", 0, cells("en"))]


def _heat(report: Report, base: StageResult, final: StageResult) -> list[HeatRow]:
    changes = {
        (c.measure, c.language): c
        for c in report.comparisons
        if c.family == "subdomain" and (c.before, c.after) == (base.name, final.name)
    }
    subdomains = _ordered({*base.by_subdomain, *final.by_subdomain}, report)
    nothing = CellMeasures(zh=UNMEASURED, en=UNMEASURED)
    return [
        HeatRow(
            subdomain,
            base.by_subdomain.get(subdomain, nothing),
            final.by_subdomain.get(subdomain, nothing),
            {language.value: changes.get((subdomain, language)) for language in Language},
        )
        for subdomain in subdomains
    ]


def _ordered(ids: set[str], report: Report) -> list[str]:
    """As the charter orders them; what it does not name comes last."""
    place = {id: number for number, id in enumerate(report.labels)}
    return sorted(ids, key=lambda id: (place.get(id, len(place)), id))


def _rounds(stages: Sequence[StageResult]) -> dict[str, Any]:
    """`worked`: the rounds of which is known how they were worked; reports of before have none."""
    rounds = [stage for stage in stages if stage.round is not None]
    worked = _worked(stages)
    return {
        "rounds": rounds,
        "worked": worked,
        "funnel": funnel([stage.round for stage in rounds if stage.round is not None]),
        "phase_key": phase_key([work.seconds for _, work in worked]),
        "roles": wording.ROLES,
    }


def _worked(stages: Sequence[StageResult]) -> list[tuple[str, RoundWork]]:
    """Name of the stage, and how its round was worked."""
    return [(one.name, one.round.work) for one in stages if one.round is not None and one.round.work is not None]


def _samples(stages: Sequence[StageResult]) -> list[Sample]:
    """The kept answers by pair, with language and stage."""
    pairs: dict[str, dict[str, dict[str, Example]]] = {}
    for stage in stages:
        for example in stage.examples:
            of_pair = pairs.setdefault(example.item.pair_id, {"zh": {}, "en": {}})
            of_pair[example.item.language.value][stage.name] = example
    return [Sample({language: kept for language, kept in pair.items() if kept}) for pair in pairs.values()]


# Pictures.


def _charts(report: Report) -> dict[str, Markup]:
    """By name; the templates place them."""
    stages, names = report.stages, [stage.name for stage in report.stages]
    path = [stage.name for stage in path_stages(stages)]
    by_stage = partial(charts.stage_chart, names)
    slim = partial(by_stage, width=plot.SLIM)
    pictures = {
        f"attack_{language}": by_stage(_suite_series(stages, language), label=MEASURES["attack_success"])
        for language in ("zh", "en")
    }
    for measure, floor in (("over_refusal", 0.1), ("benign_helpful", 1.0), ("broken", 0.1)):
        series = _language_series(stages, measure)
        pictures[measure] = slim(series, label=MEASURES[measure], floor=floor)
    pictures["agreement"] = by_stage(_pair_series(stages), label=MEASURES["agreement"])
    pictures["tradeoff"] = charts.tradeoff_chart(stages, path, MEASURES["attack_success"])
    if report.matrix is not None:
        pictures["matrix"] = matrix_chart(report.matrix)
    if worked := _worked(stages):
        pictures["phases"] = phase_chart([(name, work.seconds) for name, work in worked])
    return pictures | _cost_charts(stages) | _archive_charts(report)


def _cost_charts(stages: Sequence[StageResult]) -> dict[str, Markup]:
    """`memory` is missing where it was not taken."""
    times = [(stage.name, stage.seconds, wording.duration(stage.seconds)) for stage in stages]
    peaks = [(s.name, float(m), wording.memory(m)) for s in stages if (m := s.peak_rss_bytes) is not None]
    pictures = {"seconds": charts.cost_bars(times, Bilingual(en="Wall time by stage", zh="各阶段用时"))}
    if peaks:
        pictures["memory"] = charts.cost_bars(peaks, Bilingual(en="Peak memory by stage", zh="各阶段内存峰值"))
    return pictures


def _suite_series(stages: Sequence[StageResult], language: str) -> list[plot.Series]:
    return [
        plot.Series(wording.SUITES[suite], {s.name: s.attack_success[suite][language] for s in stages})
        for suite in ATTACK_SUITES
    ]


def _language_series(stages: Sequence[StageResult], measure: str) -> list[plot.Series]:
    return [
        plot.Series(wording.LANGUAGES[language], {s.name: getattr(s, measure)[language] for s in stages})
        for language in ("zh", "en")
    ]


def _pair_series(stages: Sequence[StageResult]) -> list[plot.Series]:
    return [
        plot.Series(MEASURES[measure], {s.name: getattr(s, measure) for s in stages})
        for measure in ("agreement", "both_consistent")
    ]


def _archive_charts(report: Report) -> dict[str, Markup]:
    """One grid per round, all with the same rows and columns, under `archive-N`."""
    rounds = [stage.round for stage in report.stages if stage.round is not None and stage.round.archive]
    keys = [key.split("/") for one in rounds for key in one.archive]
    subdomains = _ordered({subdomain for subdomain, _, _ in keys}, report)
    tactics = _ordered({tactic for _, tactic, _ in keys}, report)
    return {
        f"archive-{one.number}": charts.archive_chart(
            one.archive, subdomains, tactics, report.labels, wording.stage_name(f"round-{one.number}")
        )
        for one in rounds
    }
