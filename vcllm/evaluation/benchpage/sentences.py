"""What a bench report says in plain sentences: how the last model did, and how far its judge can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.figures import (
    PRIMARIES,
    BenchReport,
    Calibration,
    JudgeReport,
    ModelComparison,
    ModelFigures,
    Primary,
    SelfTest,
)
from vcllm.evaluation.benchpage.wording import MEASURES, measure_name
from vcllm.evaluation.comparing import is_shown
from vcllm.evaluation.verdict import told_difference, told_share
from vcllm.evaluation.wording import LANGUAGES, sample_size

# Models.


def prompted_model(report: BenchReport) -> ModelFigures | None:
    """The prompt-only baseline, unless it is itself first or last."""
    inner = report.models[1:-1]
    return next((model for model in inner if model.decoding and model.decoding.charter_prompt), None)


def comparison_of(report: BenchReport, measure: Primary, before: str, after: str) -> ModelComparison | None:
    wanted = ("primary", measure, before, after)
    return next((c for c in report.comparisons if (c.family, c.measure, c.before, c.after) == wanted), None)


def is_better(comparison: ModelComparison) -> bool:
    """Whether the move, shown or not, goes the wanted way."""
    value = comparison.difference.value or 0
    if comparison.family == "primary":
        return value < 0 if MEASURES[comparison.measure].wanted == "low" else value > 0
    return value < 0 if comparison.family == "attack_cells" else value > 0


def verdict_lines(report: BenchReport) -> list[Bilingual]:
    """The last model against the first and against the prompt-only baseline, better, worse and not shown alike."""
    last, prompted = report.models[-1].model, prompted_model(report)
    lines = []
    for before in (report.models[0].model, prompted.model if prompted else None):
        if before is not None and before != last:
            lines += _against(report, before, last)
    if unscored := sum(model.num_unscored for model in report.models):
        en = f"{unscored} answers could not be judged: they are left out of every figure, neither good nor bad."
        zh = f"有 {unscored} 条回答无法评判：不计入任何数字，既不算好，也不算坏。"
        lines.append(Bilingual(en=en, zh=zh))
    return lines


def _against(report: BenchReport, before: str, after: str) -> list[Bilingual]:
    found = [c for m in PRIMARIES if (c := comparison_of(report, m, before, after))]
    lines = [_shown(c) for c in found if is_shown(c)]
    if rest := [measure_name(c.measure) for c in found if not is_shown(c)]:
        en, zh = ", ".join(_inside(name.en) for name in rest), "、".join(name.zh for name in rest)
        lines.append(
            Bilingual(
                en=f"{after} against {before}: no difference could be shown in {en}.",
                zh=f"{after} 与 {before} 相比：{zh}未能显示差异。",
            )
        )
    return lines


def _shown(c: ModelComparison) -> Bilingual:
    name, (en, zh) = measure_name(c.measure), told_difference(c.difference, c.p_adjusted)
    way_en, way_zh = ("better", "更好") if is_better(c) else ("worse", "更差")
    return Bilingual(
        en=f"{c.after} against {c.before}: {way_en} in {_inside(name.en)}, {en}.",
        zh=f"{c.after} 与 {c.before} 相比：{name.zh}{way_zh}，{zh}。",
    )


def _inside(name: str) -> str:
    """A name in the middle of a sentence."""
    return name[0].lower() + name[1:]


# Judges.


@dataclass(frozen=True)
class Badge:
    """How far a judge can be trusted."""

    state: Literal["rule", "validated", "selftest", "not"]
    text: Bilingual
    """In a line."""
    reasons: tuple[Bilingual, ...] = ()
    """Why not, each as a sentence."""


def badge(judge: JudgeReport) -> Badge:
    """Validated only by people's labels; the self-test alone shows little, and its absence nothing."""
    if judge.rule:
        return Badge("rule", Bilingual(en="judges by rule: nothing to validate", zh="按规则评判：无需验证"))
    if judge.validated and judge.calibration is not None:
        return Badge("validated", _validated(judge.calibration))
    if judge.validated and judge.self_test is not None:
        en, zh = _ordered(judge.self_test)
        return Badge(
            "selftest",
            Bilingual(en=f"self-test passed, no labels by people: {en}", zh=f"自测通过，无人工标注：{zh}"),
            (
                Bilingual(
                    en="It passed its self-test, but people labelled no answers: how often it errs is not known.",
                    zh="它通过了自测，但没有人工标注的回答可供对照：误判有多常见，无从得知。",
                ),
            ),
        )
    return Badge("not", Bilingual(en="judge not validated", zh="裁判未经验证"), tuple(_doubts(judge)))


def alarm(report: BenchReport) -> Badge | None:
    """What must stand at the head of the page: the judge of the figures is not validated by people's labels."""
    found = badge(report.judges[0])
    return found if found.state in ("selftest", "not") else None


def _validated(found: Calibration) -> Bilingual:
    kappas = [(LANGUAGES[one.lang], _coefficient(one.kappa)) for one in found.languages if one.lang is not None]
    return Bilingual(
        en="validated: kappa with people " + "; ".join(f"{language.en} {kappa}" for language, kappa in kappas),
        zh="已验证：与人工标注的 kappa 为" + "；".join(f"{language.zh} {kappa}" for language, kappa in kappas),
    )


def _doubts(judge: JudgeReport) -> list[Bilingual]:
    doubts = []
    if judge.self_test is None:
        doubts.append(Bilingual(en="Its self-test was not run.", zh="未做自测。"))
    elif not judge.self_test.passed:
        en, zh = _ordered(judge.self_test)
        doubts.append(Bilingual(en=f"It failed its self-test: {en}.", zh=f"自测未通过：{zh}。"))
    if judge.calibration is None:
        doubts.append(Bilingual(en="No answers were labelled by people.", zh="没有人工标注的回答可供对照。"))
    else:
        doubts += [Bilingual(en=fault, zh=fault) for fault in judge.calibration.faults]
    return doubts


def _ordered(test: SelfTest) -> tuple[str, str]:
    """How often the good answer came first, in English and Chinese."""
    (zh_en, zh_zh), (en_en, en_zh) = told_share(test.zh), told_share(test.en)
    return f"Chinese {zh_en}, English {en_en}", f"中文 {zh_zh}，英文 {en_zh}"


def _coefficient(m: Measure) -> str:
    if m.value is None:
        return f"not measured, {sample_size(m.n)}"
    span = "" if m.low is None or m.high is None else f" [{m.low:.2f}, {m.high:.2f}]"
    return f"{m.value:.2f}{span}, {sample_size(m.n)}"
