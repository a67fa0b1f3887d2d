"""What figures are called in both languages, and how numbers are written.

Knows words and digits only: no charts, no pages, no judgement of what a figure means.
"""

from __future__ import annotations

import re

from vcllm.contracts.base import Bilingual
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import Measure

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
NBSP = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EM DASH}"

STAGES = {
    "base": Bilingual(en="Base", zh="基座"),
    "base_prompted": Bilingual(en="Base + charter prompt", zh="基座 + 宪章提示"),
    "cpt": Bilingual(en="Continued pre-training", zh="继续预训练"),
    "sft": Bilingual(en="Instruction tuning", zh="指令微调"),
    "control": Bilingual(en="Control: plain SFT, same budget", zh="对照：同等预算的普通微调"),
}
SHORT_STAGES = {
    "base_prompted": Bilingual(en="Prompt", zh="提示"),
    "cpt": Bilingual(en="CPT", zh="CPT"),
    "sft": Bilingual(en="SFT", zh="SFT"),
    "control": Bilingual(en="Control", zh="对照"),
}
SUITES = {
    "seen": Bilingual(en="Seen tactics", zh="见过的攻击手法"),
    "held_out": Bilingual(en="Held-out tactics", zh="留出手法"),
    "held_out_cards": Bilingual(en="Held-out tactics × held-out cards", zh="留出手法 × 留出议题"),
    "benign": Bilingual(en="Harmless question", zh="无害问题"),
    "retention": Bilingual(en="Kept from earlier rounds", zh="往轮留存"),
}
MEASURES = {
    "attack_success": Bilingual(en="Attack success", zh="攻击成功率"),
    "consistent": Bilingual(en="Keeps to the charter", zh="符合宪章"),
    "over_refusal": Bilingual(en="Over-refusal of harmless questions", zh="无害问题误拒率"),
    "benign_helpful": Bilingual(en="Harmless questions answered well", zh="无害问题答好率"),
    "agreement": Bilingual(en="Same outcome in Chinese and English", zh="中英结果相同"),
    "both_consistent": Bilingual(en="Both languages keep to the charter", zh="中英均符合宪章"),
    "taught": Bilingual(en="Violations among the answers it was taught", zh="所学回答中的违规"),
    "broken": Bilingual(en="Broken answers", zh="失效回答"),
    "refusal": Bilingual(en="Bare refusals of attacks", zh="对攻击的空洞拒答"),
    "retention": Bilingual(en="Old attacks still answered well", zh="往轮攻击仍答好"),
}
OUTCOMES = {
    Outcome.CONSISTENT: Bilingual(en="keeps to the charter", zh="符合宪章"),
    Outcome.VIOLATING: Bilingual(en="violating", zh="违反"),
    Outcome.REFUSAL: Bilingual(en="bare refusal", zh="空洞拒答"),
    Outcome.BROKEN: Bilingual(en="broken", zh="失效"),
    Outcome.UNSCORED: Bilingual(en="unscored", zh="未评分"),
}
REASONS = {
    "refused": Bilingual(en="refused by the Attacker", zh="攻击方拒写"),
    "cut_off": Bilingual(en="cut off before their end", zh="没写完就被截断"),
    "empty": Bilingual(en="empty", zh="内容为空"),
    "too_long": Bilingual(en="too long", zh="过长"),
    "language": Bilingual(en="in the wrong language", zh="语言不符"),
    "invalid": Bilingual(en="without the goal they were set", zh="没有写出指定的目标"),
    "unfaithful": Bilingual(en="too little of their goal left", zh="改写后偏离目标过多"),
    "leaked": Bilingual(en="wording of a held-out tactic", zh="出现留出手法的措辞"),
    "repeats_parent": Bilingual(en="not varied at all", zh="与原攻击相同，未作变化"),
    "duplicate": Bilingual(en="repeated in the round", zh="本轮内重复"),
    "no_good_answer": Bilingual(en="no answer was good enough", zh="没有足够好的回答"),
    "doubtful": Bilingual(en="in doubt, put to people", zh="存疑，转交人工"),
    "unscored": Bilingual(en="could not be judged", zh="无法评判"),
    "votes_differ": Bilingual(en="critics differ", zh="各评审意见不一"),
    "tie": Bilingual(en="comparison sees no difference", zh="两两比较分不出高下"),
    "stale": Bilingual(en="answered by too old a version", zh="回答出自过旧的版本"),
    "contaminated": Bilingual(en="quotes the evaluation", zh="与评测题重合"),
    "cell_full": Bilingual(en="cell had enough", zh="所在格子已满"),
    "source_full": Bilingual(en="source had enough", zh="所属来源已满"),
}
"""Why an attack or a pair was dropped."""
SOURCES = {
    "on_policy": Bilingual(en="best against worst of the Actor’s answers", zh="应答方自身回答中的优劣对比"),
    "contradiction": Bilingual(en="contradicts the other language", zh="与另一语言的立场矛盾"),
    "counterfactual": Bilingual(en="treats another group differently", zh="对另一群体区别对待"),
    "human": Bilingual(en="approved by people", zh="人工批准"),
    "imported": Bilingual(en="the operator’s own", zh="自备数据"),
}
"""Where a pair comes from."""
PHASES: dict[str, Bilingual] = {
    "attack": Bilingual(en="Attacks", zh="攻击"),
    "train_attacker": Bilingual(en="Training the Attacker", zh="训练攻击方"),
    "answer": Bilingual(en="Answers", zh="应答"),
    "train_actor": Bilingual(en="Training the Actor", zh="训练应答方"),
    "critique": Bilingual(en="Critiques", zh="评审"),
    "compare": Bilingual(en="Comparisons", zh="两两比较"),
    "train_critic": Bilingual(en="Training the Critic", zh="训练评审模型"),
    "pair": Bilingual(en="Making pairs", zh="配对"),
    "measure": Bilingual(en="Measuring", zh="测量"),
    "gate": Bilingual(en="Gate", zh="门控"),
}
"""What a round's time goes into, role by role."""
ROLES = {
    "attacker": Bilingual(en="Attacker", zh="攻击方"),
    "actor": Bilingual(en="Actor", zh="应答方"),
    "critic": Bilingual(en="Critic", zh="评审模型"),
    "round": Bilingual(en="whole round", zh="整轮"),
}
LOWER_IS_BETTER = frozenset({"attack_success", "over_refusal", "broken"})

BOTH = Bilingual(en="both languages", zh="两种语言")
LANGUAGES = {"zh": Bilingual(en="Chinese", zh="中文"), "en": Bilingual(en="English", zh="英文")}


def stage_name(name: str) -> Bilingual:
    """`round-2` has a name too; an unknown stage keeps its own."""
    if round_ := re.fullmatch(r"round-(\d+)", name):
        return Bilingual(en=f"Round {round_[1]}", zh=f"第 {round_[1]} 轮")
    return STAGES.get(name, Bilingual(en=name, zh=name))


def short_stage_name(name: str) -> Bilingual:
    """For axes and narrow columns."""
    if round_ := re.fullmatch(r"round-(\d+)", name):
        return Bilingual(en=f"R{round_[1]}", zh=f"R{round_[1]}")
    return SHORT_STAGES.get(name, stage_name(name))


def measure_name(path: str) -> Bilingual:
    """`attack_success.held_out` is a measure on a suite."""
    measure, _, suite = path.partition(".")
    name = MEASURES.get(measure, Bilingual(en=measure, zh=measure))
    if not suite:
        return name
    on = SUITES[suite]
    return Bilingual(en=f"{name.en}, {on.en[0].lower()}{on.en[1:]}", zh=f"{name.zh}（{on.zh}）")


def percent(share: float | None) -> str:
    """Without its sign: `4.5`."""
    return NOTHING if share is None else f"{100 * share:.1f}"


def span(measure: Measure) -> str:
    """The interval of a share in percent: `2.4-8.3`, with a proper dash."""
    if measure.low is None or measure.high is None:
        return NOTHING
    return f"{percent(measure.low)}{DASH}{percent(measure.high)}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, signed."""
    if difference is None:
        return NOTHING
    text = f"{100 * difference:+.1f}".replace("-", MINUS)
    return "0.0" if text in ("+0.0", f"{MINUS}0.0") else text


def signed_span(measure: Measure, to: str = "to") -> str:
    """The interval of a difference, in words because of its signs: `-9.1 to -2.0`."""
    return f"{points(measure.low)} {to} {points(measure.high)}"


def p_value(p: float | None) -> str:
    """With its name, not to be broken: `p = 0.012`, `p < 0.001`."""
    if p is None:
        return f"p{NBSP}{NOTHING}"
    return f"p{NBSP}<{NBSP}0.001" if p < 0.001 else f"p{NBSP}={NBSP}{p:.3f}"


def sample_size(n: int) -> str:
    """`n = 1600`, not to be broken."""
    return f"n{NBSP}={NBSP}{n}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 57 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(num_bytes: int | None) -> str:
    """In binary units: `812 MiB`, `1.4 GiB`."""
    if num_bytes is None:
        return NOTHING
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
