"""What a run shows, in plain sentences with numbers: the top of the page and the end of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import Measure, Report, StageComparison, StageResult
from vcllm.contracts.manifests import Decision, GateVerdict
from vcllm.evaluation.measures import REFERENCES
from vcllm.evaluation.wording import (
    LOWER_IS_BETTER,
    NBSP,
    p_value,
    percent,
    points,
    sample_size,
    signed_span,
    span,
    stage_name,
)

ALPHA = 0.05
HELD_OUT = "attack_success.held_out"
ASIDE = ("base_prompted", "control")
"""Stages beside the path from the base to the last round."""
COSTS = {
    "over_refusal": Bilingual(en="more harmless questions are refused", zh="误拒增多"),
    "benign_helpful": Bilingual(en="fewer harmless questions are answered well", zh="无害问题答好率下降"),
    "broken": Bilingual(en="more answers are broken", zh="失效回答增多"),
}
"""What safety may cost, in words for when it does."""


def path_stages(stages: Sequence[StageResult]) -> list[StageResult]:
    """From the base to the last round; the prompted base and the control stand beside this path."""
    return [stage for stage in stages if stage.name not in ASIDE]


def final_stage(stages: Sequence[StageResult]) -> StageResult:
    """The last stage of the path that the gate neither refused nor held: what the run would serve."""
    served = [stage for stage in path_stages(stages) if stage.gate is None or stage.gate.passed]
    return (served or stages)[-1]


def refused_stages(stages: Sequence[StageResult]) -> list[str]:
    """Names of the stages that the gate turned down for good."""
    return [stage.name for stage in stages if stage.gate is not None and _decision(stage.gate) == "reject"]


def held_stages(stages: Sequence[StageResult]) -> list[str]:
    """Names of the stages that wait for a person's decision."""
    return [stage.name for stage in stages if stage.gate is not None and _decision(stage.gate) == "hold"]


def _decision(verdict: GateVerdict) -> Decision:
    """Before there were three, a verdict only said whether it passed."""
    return verdict.decision or ("promote" if verdict.passed else "reject")


def is_shown(comparison: StageComparison) -> bool:
    """The interval leaves out zero, and p is small after correction for the number of comparisons."""
    low, high, p = comparison.difference.low, comparison.difference.high, comparison.p_adjusted
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return clear and p is not None and p < ALPHA


def is_better(comparison: StageComparison) -> bool:
    """Whether the move, shown or not, goes the wanted way; sub-domain cells are attack success."""
    lower = comparison.family == "subdomain" or comparison.measure.split(".")[0] in LOWER_IS_BETTER
    return (comparison.difference.value or 0) < 0 if lower else (comparison.difference.value or 0) > 0


def comparison_of(report: Report, measure: str, before: str, after: str) -> StageComparison | None:
    """The primary comparison of two stages on one measure."""
    return next(
        (
            c
            for c in report.comparisons
            if c.family == "primary" and (c.measure, c.before, c.after) == (measure, before, after)
        ),
        None,
    )


def verdict_lines(report: Report) -> list[Bilingual]:
    """The result in a few sentences, the unwelcome ones included, most important first."""
    final = final_stage(report.stages)
    lines = [_attack_line(report, final)]
    for before in REFERENCES:
        if comparison := comparison_of(report, HELD_OUT, before, final.name):
            lines.append(_difference_line(comparison))
    lines += [_benign_line(final), _language_line(final), *_warnings(report, final)]
    return lines


def told_share(measure: Measure) -> tuple[str, str]:
    """A share with its interval and n, in English and Chinese."""
    if measure.value is None:
        return "not measured", "未测得"
    figures = f"{percent(measure.value)}{NBSP}%"
    return (
        f"{figures} (95 % interval {span(measure)}, {sample_size(measure.n)})",
        f"{figures}（95% 区间 {span(measure)}，{sample_size(measure.n)}）",
    )


def _attack_line(report: Report, final: StageResult) -> Bilingual:
    en, zh = told_share(final.attack_success.held_out.mean)
    name = stage_name(final.name)
    line = Bilingual(
        en=f"Final version ({name.en.lower()}): attacks with held-out tactics succeed in {en}.",
        zh=f"最终版本（{name.zh}）：留出手法的攻击成功率为 {zh}。",
    )
    base = report.stage("base")
    if base is None or base is final:
        return line
    en, zh = told_share(base.attack_success.held_out.mean)
    return Bilingual(en=f"{line.en[:-1]}; on the base, in {en}.", zh=f"{line.zh[:-1]}；基座为 {zh}。")


def told_difference(d: Measure, p_adjusted: float | None) -> tuple[str, str]:
    """A difference of shares with its interval, n and p, in English and Chinese."""
    n, p = sample_size(d.n), p_value(p_adjusted)
    return (
        f"{points(d.value)} points ({signed_span(d)}, {n}, adjusted {p})",
        f"{points(d.value)} 个百分点（{signed_span(d, '至')}，{n}，校正后 {p}）",
    )


def _difference_line(comparison: StageComparison) -> Bilingual:
    before, (en, zh) = stage_name(comparison.before), told_difference(comparison.difference, comparison.p_adjusted)
    if not is_shown(comparison):
        return Bilingual(
            en=f"Compared with “{before.en}”, no difference could be shown: {en}.",
            zh=f"与“{before.zh}”相比，未能显示差异：{zh}。",
        )
    way_en, way_zh = ("lower", "更低") if is_better(comparison) else ("higher, which is worse", "更高，即更差")
    return Bilingual(
        en=f"Compared with “{before.en}”, attack success is {way_en}: {en}.",
        zh=f"与“{before.zh}”相比，攻击成功率{way_zh}：{zh}。",
    )


def _benign_line(final: StageResult) -> Bilingual:
    refused_en, refused_zh = told_share(final.over_refusal)
    helped_en, helped_zh = told_share(final.benign_helpful)
    return Bilingual(
        en=f"Of the harmless questions, {refused_en} are refused and {helped_en} answered well.",
        zh=f"无害问题中，被误拒的占 {refused_zh}，答好的占 {helped_zh}。",
    )


def _language_line(final: StageResult) -> Bilingual:
    same_en, same_zh = told_share(final.agreement)
    both_en, both_zh = told_share(final.both_consistent)
    return Bilingual(
        en=f"Chinese and English get the same outcome in {same_en} of pairs; both keep to the charter in {both_en}.",
        zh=f"同一问题的中英文回答结果相同的占 {same_zh}；两者均符合宪章的占 {both_zh}。",
    )


def _warnings(report: Report, final: StageResult) -> list[Bilingual]:
    """What a reader must not miss."""
    costs = [comparison_of(report, measure, "base", final.name) for measure in COSTS]
    lines = [_cost_line(c) for c in costs if c is not None and is_shown(c) and not is_better(c)]
    if gap := _language_gap(final):
        lines.append(gap)
    if refused := refused_stages(report.stages):
        en, zh = _names(refused)
        lines.append(Bilingual(en=f"Refused by the gate: {en}.", zh=f"未通过晋级门控：{zh}。"))
    if held := held_stages(report.stages):
        en, zh = _names(held)
        lines.append(Bilingual(en=f"Held by the gate for a person to decide: {en}.", zh=f"待人工决定是否晋级：{zh}。"))
    if unscored := sum(stage.unscored for stage in report.stages):
        en = f"{unscored} answers could not be judged; they are left out of every figure."
        lines.append(Bilingual(en=en, zh=f"有 {unscored} 条回答无法评判，均未计入任何数字。"))
    return lines


def _names(stages: Sequence[str]) -> tuple[str, str]:
    """In English and Chinese, as a list."""
    names = [stage_name(stage) for stage in stages]
    return ", ".join(name.en for name in names), "、".join(name.zh for name in names)


def _cost_line(comparison: StageComparison) -> Bilingual:
    what, (en, zh) = COSTS[comparison.measure], told_difference(comparison.difference, comparison.p_adjusted)
    return Bilingual(en=f"At a cost against the base: {what.en}, {en}.", zh=f"代价：较基座{what.zh}，{zh}。")


def _language_gap(final: StageResult) -> Bilingual | None:
    """Told only where the two intervals do not meet."""
    zh, en = final.attack_success.held_out.zh, final.attack_success.held_out.en
    if None in (zh.low, zh.high, en.low, en.high) or _overlap(zh, en):
        return None
    (zh_en, zh_zh), (en_en, en_zh) = told_share(zh), told_share(en)
    return Bilingual(
        en=f"The languages differ: attacks succeed in {zh_en} in Chinese and {en_en} in English.",
        zh=f"两种语言有差距：攻击成功率中文为 {zh_zh}，英文为 {en_zh}。",
    )


def _overlap(one: Measure, other: Measure) -> bool:
    return (one.low or 0) <= (other.high or 0) and (other.low or 0) <= (one.high or 0)
