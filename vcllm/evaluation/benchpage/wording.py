"""What the figures of a bench report are called in both languages, and which way each of them should go.

Knows words only; how numbers are written stands in `vcllm.evaluation.wording`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vcllm.contracts.answers import Compliance, JudgeFailure
from vcllm.contracts.base import Bilingual
from vcllm.contracts.bench import AttackStyle, SelfTestFault, UnitKind
from vcllm.contracts.critiques import Outcome
from vcllm.evaluation.wording import OUTCOMES

Wanted = Literal["high", "low", "zero", "neither"]
Form = Literal["share", "score", "gap", "number"]
"""How a figure is written: in percent, on the scale from 0 to 100, in signed points of either, or as it is."""


@dataclass(frozen=True)
class Name:
    """A figure's name and what to make of it."""

    text: Bilingual
    wanted: Wanted = "neither"
    form: Form = "share"


def _name(en: str, zh: str, wanted: Wanted = "neither", form: Form = "share") -> Name:
    return Name(Bilingual(en=en, zh=zh), wanted, form)


MEASURES = {
    "value_consistency": _name("Value-consistency", "价值一致性", "high", "score"),
    "attack_success": _name("Attack success", "攻击成功率", "low"),
    "cross_language": _name("Value-consistency in the worse language", "较差语言的价值一致性", "high", "score"),
    "over_refusal": _name("Over-refusal", "误拒率", "low"),
    "even_handedness": _name("Even-handedness", "一视同仁率", "high"),
    "severity": _name("Severity of violations", "违反的严重程度", "low", "score"),
    "attack_refusal": _name("Attacks declined without help", "对攻击的空洞拒答", "neither"),
    "partial": _name("Harmless questions helped with in part", "无害问题只帮了一部分", "low"),
    "benign_helpful": _name("Harmless questions answered well", "无害问题答好率", "high"),
    "tradeoff": _name("Attacks withstood minus over-refusal", "挡住率减误拒率", "high", "gap"),
    "language_gap": _name("Gap: Chinese minus English", "差距：中文减英文", "zero", "gap"),
    "language_gap_corrected": _name("Gap less the judge’s own bias", "扣除裁判偏差后的差距", "zero", "gap"),
    "judge_bias": _name("The judge’s bias on translations", "裁判对译文的偏差", "zero", "gap"),
    "dispersion": _name("Mean distance of the two languages", "中英平均差异", "low", "score"),
    "stance_agreement": _name("Same stance in both languages", "中英立场相同", "high"),
    "stance_kappa": _name("Kappa of the stances", "立场的 kappa", "high", "number"),
    "language_refusal_gap": _name("Refusals: Chinese minus English", "拒答：中文减英文", "zero", "gap"),
    "side_refusal_gap": _name("Refusals: side a minus side b", "拒答：甲方减乙方", "zero", "gap"),
    "hedging_gap": _name("Hedging, levels: side a minus side b", "含糊程度（级）：甲方减乙方", "zero", "number"),
    "length_ratio": _name("Shorter answer over longer one", "较短回答与较长回答之比", "high"),
    "position_consistency": _name("Judge says the same in both orders", "裁判两种顺序判断一致", "high"),
    "counterfactual_consistency": _name("Same outcome for both groups", "两个群体结果相同", "high"),
    "counterfactual_spread": _name("Mean difference between groups", "群体间平均差异", "low", "score"),
    "role_gap": _name("Advantaged minus disadvantaged group", "优势群体减弱势群体", "zero", "gap"),
    "turn_of_flip": _name("Turn of the first violation", "首次违反出现的轮次", "high", "number"),
    "num_flips": _name("Changes of mind per conversation", "每段对话的摇摆次数", "low", "number"),
    "language_match": _name("Answers in the language of the question", "回答语言与提问一致", "high"),
    "empty": _name("Empty answers", "空回答", "low"),
    "truncated": _name("Cut off by the token limit", "因长度上限被截断", "low"),
    "repeated": _name("Half or more of it repeats", "半数以上内容重复", "low"),
    "broken": _name("Broken: garbled or off topic", "失效：混乱或离题", "low"),
    "reward": _name("Reward, in standard deviations", "奖励分（标准差）", "high", "number"),
}
"""Figures of whole models; those about single cells, topics and sets are shown in pictures."""

KINDS: dict[str, Bilingual] = {
    UnitKind.DIRECT: Bilingual(en="asked openly", zh="直接提问"),
    UnitKind.PREMISE: Bilingual(en="takes a claim for granted", zh="预设前提"),
    UnitKind.WRAPPER: Bilingual(en="wrapped", zh="包装"),
    UnitKind.COUNTERFACTUAL: Bilingual(en="group swapped", zh="替换群体"),
    UnitKind.MIRROR: Bilingual(en="both sides", zh="正反两方"),
    UnitKind.BENIGN: Bilingual(en="harmless", zh="无害问题"),
    UnitKind.PRESSURE: Bilingual(en="pressed over turns", zh="多轮施压"),
    "attack": Bilingual(en="attack of another set", zh="其他题集的攻击"),
    "fresh": Bilingual(en="attack of a training round", zh="训练轮次的攻击"),
    "choice": Bilingual(en="multiple choice", zh="选择题"),
}
STYLES: dict[str, Bilingual] = {
    AttackStyle.LOADED_STATISTIC: Bilingual(en="loaded statistic", zh="诱导性数据"),
    AttackStyle.ASSUMED_FACT: Bilingual(en="assumed fact", zh="当作事实"),
    AttackStyle.ANECDOTE: Bilingual(en="anecdote", zh="个人经历"),
    AttackStyle.ROLE_PLAY: Bilingual(en="role-play", zh="角色扮演"),
    AttackStyle.AUTHORITY: Bilingual(en="authority", zh="搬出权威"),
    AttackStyle.HYPOTHETICAL: Bilingual(en="hypothetical", zh="假设情境"),
    AttackStyle.TRANSLATION: Bilingual(en="translation", zh="借口翻译"),
    AttackStyle.DRIP_FEED: Bilingual(en="drip feed", zh="步步诱导"),
    AttackStyle.ACADEMIC_COVER: Bilingual(en="academic cover", zh="学术幌子"),
    AttackStyle.CONSENSUS_CLAIM: Bilingual(en="“everyone agrees”", zh="声称众所公认"),
    AttackStyle.EMOTIONAL_APPEAL: Bilingual(en="emotional appeal", zh="诉诸情感"),
    AttackStyle.REPEATED_DEMAND: Bilingual(en="repeated demand", zh="反复要求"),
}
OTHER = {"other": Bilingual(en="Other", zh="其他")}
"""Where a row of another set belongs to none of the charter's sub-domains."""
DOMAINS = {
    "race": Bilingual(en="Race and origin", zh="种族与族群"),
    "society": Bilingual(en="Society", zh="社会"),
    "politics": Bilingual(en="Politics", zh="政治"),
}
COMPLIANCES = {
    Compliance.FULL: Bilingual(en="did what was asked", zh="照做"),
    Compliance.HELPFUL: Bilingual(en="corrected or declined, and helped", zh="纠正或婉拒并给予帮助"),
    Compliance.PARTIAL: Bilingual(en="helped in part", zh="部分帮助"),
    Compliance.DECLINED: Bilingual(en="refused or lectured", zh="拒绝或说教"),
    Compliance.UNRELATED: Bilingual(en="off topic or garbled", zh="离题或混乱"),
}
FAILURES: dict[str, Bilingual] = {
    JudgeFailure.PARSE_ERROR: Bilingual(en="the judge’s reply could not be read", zh="裁判的回复无法解析"),
    JudgeFailure.JUDGE_REFUSED: Bilingual(en="the judge refused", zh="裁判拒绝评判"),
    JudgeFailure.LOW_MASS: Bilingual(en="too little probability on the levels", zh="各级别上的概率过低"),
    JudgeFailure.TRUNCATED: Bilingual(en="the judge was cut off", zh="裁判的回复被截断"),
    JudgeFailure.WRONG_LANGUAGE: Bilingual(en="the judge used the wrong language", zh="裁判用错了语言"),
    JudgeFailure.OUTAGE: Bilingual(en="the judge could not be reached", zh="无法连接裁判"),
    JudgeFailure.TOO_LONG: Bilingual(en="too long for the judge", zh="超出裁判的长度上限"),
    JudgeFailure.NO_PROBABILITIES: Bilingual(en="the judge gives no probabilities", zh="裁判不提供概率"),
    JudgeFailure.NOT_COVERED: Bilingual(en="this judge does not cover such questions", zh="该裁判不适用于此类题目"),
    "no_answer": Bilingual(en="the model’s server took no such question", zh="模型服务未接受该题目"),
    "unknown": Bilingual(en="no reason given", zh="未给出原因"),
}
FAULTS: dict[str, Bilingual] = {
    SelfTestFault.STEREOTYPE: Bilingual(en="stereotype", zh="刻板印象"),
    SelfTestFault.ONE_SIDED: Bilingual(en="one-sided", zh="一面之词"),
    SelfTestFault.WRONG_FACT: Bilingual(en="wrong fact", zh="事实错误"),
    SelfTestFault.PREACHY_REFUSAL: Bilingual(en="preachy refusal", zh="说教式拒答"),
    SelfTestFault.ACCEPTS_PREMISE: Bilingual(en="accepts the premise", zh="接受错误前提"),
}
MODES = {
    "logit": Bilingual(en="probabilities of one forced token", zh="强制单词元的概率"),
    "weighted": Bilingual(en="probabilities of the score after a reason", zh="先述理由，再取评分的概率"),
    "raw": Bilingual(en="the score as written, no probabilities", zh="直接写出的分数，无概率"),
    "rule": Bilingual(en="by rule", zh="按规则"),
    "guard": Bilingual(en="guard model", zh="安全护栏模型"),
    "reward": Bilingual(en="reward model", zh="奖励模型"),
    "choice": Bilingual(en="reads the chosen option by rule", zh="按规则读取所选选项"),
}
CHOSEN = {
    Outcome.CONSISTENT: Bilingual(en="right option", zh="选对"),
    Outcome.VIOLATING: Bilingual(en="another option", zh="选了别的"),
    Outcome.BROKEN: Bilingual(en="no option named", zh="未指明选项"),
}
"""What outcomes mean where an option is chosen."""
HELPED = Bilingual(en="answered well", zh="答好")
"""What the best outcome means for a harmless question."""
UNITS = {
    "share": Bilingual(en="%", zh="%"),
    "score": Bilingual(en="0 to 100", zh="0 至 100"),
    "gap": Bilingual(en="points", zh="百分点"),
    "number": Bilingual(en="", zh=""),
}
WANTED = {
    "high": Bilingual(en="higher is better", zh="越高越好"),
    "low": Bilingual(en="lower is better", zh="越低越好"),
    "zero": Bilingual(en="best at zero", zh="越接近零越好"),
    "neither": Bilingual(en="neither wanted nor a fault", zh="不求高低"),
}


def named(id: str, *names: dict[str, Bilingual]) -> Bilingual:
    """The first name found; what has none, such as an operator's own sub-domain, is called by its id."""
    return next((known[id] for known in names if id in known), Bilingual(en=id, zh=id))


def outcome_name(outcome: Outcome, kind: str) -> Bilingual:
    """What an outcome means for a kind of question."""
    if kind == UnitKind.BENIGN and outcome is Outcome.CONSISTENT:
        return HELPED
    return CHOSEN.get(outcome, OUTCOMES[outcome]) if kind == "choice" else OUTCOMES[outcome]


def measure_name(measure: str) -> Bilingual:
    return MEASURES[measure].text if measure in MEASURES else Bilingual(en=measure, zh=measure)


def model_name(model: str) -> Bilingual:
    """Models are called what whoever ran the evaluation called them."""
    return Bilingual(en=model, zh=model)


def shortened(text: str, length: int) -> str:
    """For axes; a Chinese character takes the room of two letters."""
    room, kept = length, ""
    for letter in text:
        room -= 2 if ord(letter) >= 0x2E80 else 1
        if room < 0:
            return kept.rstrip() + "…"
        kept += letter
    return kept


def round_order(number: str) -> tuple[int, str]:
    """Rounds are numbered, whatever else stands in their place comes last."""
    return (int(number), "") if number.isdecimal() else (10**9, number)
