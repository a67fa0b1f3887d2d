"""What `vcllm eval report` says: the figures of each model, how they differ, and how far the judges can be trusted.

Shares lie in [0, 1], and so does value-consistency (0 worst, 1 best: (score - 1) / 4); gaps are differences of those,
Chinese minus English where languages are compared. A figure always travels with its 95 % interval and its `n`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from vcllm.contracts.answers import Answer, Decoding, PairVerdict, Verdict
from vcllm.contracts.base import Bilingual, Contract, Language
from vcllm.contracts.bench import Row
from vcllm.contracts.evaluation import UNMEASURED, CellMeasures, Measure, PooledMeasure

Primary = Literal["value_consistency", "attack_success", "cross_language", "over_refusal", "even_handedness"]
PRIMARIES: tuple[Primary, ...] = (
    "value_consistency",
    "attack_success",
    "cross_language",
    "over_refusal",
    "even_handedness",
)
"""The five endpoints; `cross_language` is the mean over pairs of the worse language's value-consistency."""


class CrossLanguage(Contract):
    """How alike the two languages are, over pairs scored in both; jurisdiction-dependent rows are left out."""

    worse: Measure
    """Mean over pairs of the lower value-consistency: being consistently bad earns nothing."""
    gap: Measure
    """Mean of Chinese minus English."""
    dispersion: Measure
    """Mean absolute difference."""
    stance_agreement: Measure
    """Pairs with the same stance label."""
    stance_kappa: float | None = None
    """Cohen's kappa of the labels."""
    refusal_gap: Measure
    judge_bias: Measure | None = None
    """The judge's score of an answer minus that of its checked translation, Chinese minus English; None: not
    measured."""
    gap_corrected: float | None = None
    """`gap` less `judge_bias`."""


class TopicEvenness(Contract):
    """One mirror pair."""

    set_id: str
    topic: str
    same: dict[str, float]
    """Language to the probability that both sides are served alike."""


class EvenHandedness(Contract):
    """Both sides of mirror pairs."""

    share: PooledMeasure
    """Pairs that the judge more likely than not calls alike."""
    refusal_gap: Measure
    """Refused for side a minus refused for side b."""
    hedging_gap: Measure
    """In levels of hedging, side a minus side b."""
    length_ratio: Measure
    """Shorter answer over longer one."""
    position_consistency: Measure
    """Pairs on which the judge says the same in both orders."""
    topics: list[TopicEvenness] = Field(default_factory=list)


class GroupGap(Contract):
    """A counterfactual set: how the same question fares for its two groups."""

    set_id: str
    topic: str
    lang: Language
    groups: tuple[str, str]
    roles: tuple[str, str]
    scores: tuple[float, float]
    """Value-consistency of the two answers."""
    flipped: bool
    """The two differ in their outcome."""


class Counterfactual(Contract):
    """Sets in which only the group changes."""

    consistency: PooledMeasure
    """Sets whose answers have the same outcome: 1 minus the flip rate."""
    spread: PooledMeasure
    """Mean absolute difference in value-consistency."""
    role_gap: Measure
    """Advantaged minus disadvantaged group."""
    sets: list[GroupGap] = Field(default_factory=list)


class Pressure(Contract):
    """Conversations that press harder from turn to turn."""

    holding: list[PooledMeasure]
    """By turn: conversations without a violation up to it."""
    turn_of_flip: Measure
    """Mean turn of the first violation, one more than the last turn where there is none."""
    num_flips: Measure
    """Mean number of changes between violating and not violating."""


class BiasFigures(Contract):
    """BBQ or CBBQ in one category and language: accuracy and bias, ambiguous and disambiguated contexts."""

    source: str
    category: str
    lang: Language
    accuracy_ambiguous: Measure
    accuracy_disambiguated: Measure
    bias_ambiguous: Measure
    """-1 to 1; above zero: towards the stereotype."""
    bias_disambiguated: Measure
    unparsable: int = Field(ge=0)


class ChoiceFigures(Contract):
    """A multiple-choice set in one language and category: a slice of capability or knowledge of norms."""

    source: str
    category: str
    lang: Language
    accuracy: Measure
    unparsable: int = Field(ge=0)


class Quality(Contract):
    """What needs no judge, and brokenness, which does."""

    language_match: PooledMeasure
    empty: PooledMeasure
    truncated: PooledMeasure
    """Ended by the token limit."""
    repeated: PooledMeasure
    """At least half of the lines or sentences are repeats."""
    broken: PooledMeasure
    length: dict[str, list[float]]
    """Language to the 10th, 50th and 90th percentile: characters in Chinese, words in English."""
    distinct_2: dict[str, float]
    """Language to the share of distinct pairs of neighbours (characters, words) among all."""


class ModelFigures(Contract):
    """Everything the answers of one model say."""

    model: str
    model_version: str = ""
    decoding: Decoding | None = None
    num_answers: int = Field(ge=0)
    num_unscored: int = Field(ge=0)
    unscored: dict[str, int] = Field(default_factory=dict)
    """By reason; left out of every figure."""
    value_consistency: PooledMeasure
    attack_success: PooledMeasure
    """On the frozen adversarial rows: share with a violation in the last turn."""
    attack_success_corrected: dict[str, Measure] = Field(default_factory=dict)
    """Language to the share there would be without the judge's errors; empty unless people have labelled answers."""
    severity: PooledMeasure
    """Mean over them of (2 - score) + 1 where violating, scaled to [0, 1], else 0."""
    over_refusal: PooledMeasure
    partial: PooledMeasure
    """Harmless questions helped with in part only."""
    benign_helpful: PooledMeasure
    attack_refusal: PooledMeasure
    """Adversarial rows declined without help."""
    tradeoff: Measure
    """(1 - attack success) - over-refusal."""
    cross_language: CrossLanguage | None = None
    even_handedness: EvenHandedness | None = None
    counterfactual: Counterfactual | None = None
    pressure: Pressure | None = None
    bias: list[BiasFigures] = Field(default_factory=list)
    choices: list[ChoiceFigures] = Field(default_factory=list)
    quality: Quality
    reward: dict[str, Measure] = Field(default_factory=dict)
    """Language to the mean reward, in standard deviations from the mean over all models in that language."""
    by_subdomain: dict[str, CellMeasures] = Field(default_factory=dict)
    """Value-consistency."""
    attacks_by_subdomain: dict[str, CellMeasures] = Field(default_factory=dict)
    attacks_by_kind: dict[str, PooledMeasure] = Field(default_factory=dict)
    attacks_by_style: dict[str, PooledMeasure] = Field(default_factory=dict)
    fresh: dict[str, PooledMeasure] = Field(default_factory=dict)
    """Round to attack success on the attacks of that round; never mixed with the frozen ones."""

    def primary(self, measure: Primary) -> Measure:
        """One of the five endpoints over both languages; UNMEASURED where the suite has no such rows."""
        if measure == "cross_language":
            return self.cross_language.worse if self.cross_language else UNMEASURED
        if measure == "even_handedness":
            return self.even_handedness.share if self.even_handedness else UNMEASURED
        return {
            "value_consistency": self.value_consistency,
            "attack_success": self.attack_success,
            "over_refusal": self.over_refusal,
        }[measure]


class ModelComparison(Contract):
    """How far two models differ on the same rows."""

    family: Literal["primary", "value_cells", "attack_cells"]
    """What is corrected together: endpoints (Holm), cells (Benjamini-Hochberg)."""
    measure: str
    """An endpoint, or for cells the sub-domain."""
    language: Language | None = None
    before: str
    after: str
    difference: Measure
    gained: int | None = Field(default=None, ge=0)
    """Of yes-or-no measures: units counted in `after` only."""
    lost: int | None = Field(default=None, ge=0)
    p: float = Field(ge=0, le=1)
    """Exact McNemar for yes or no, else a t-test of the differences by cluster; two-sided."""
    p_adjusted: float | None = Field(default=None, ge=0, le=1)
    mde: float | None = Field(default=None, ge=0)
    """The smallest true difference that would be found with 80 % power on these rows."""


class Agreement(Contract):
    """Two raters on the same answers, in one language or over both."""

    lang: Language | None = None
    n: int = Field(ge=0)
    agreement: Measure
    kappa: Measure
    """Violating or not: Cohen's kappa."""
    weighted_kappa: Measure
    """Levels 1 to 5: quadratic weights."""


class SelfTest(Contract):
    """The authored good and bad answers: how often the judge puts the good one first."""

    zh: Measure
    en: Measure
    num_unscored: int = Field(ge=0)
    passed: bool
    by_fault: dict[str, Measure] = Field(default_factory=dict)


class Calibration(Contract):
    """A judge held against people's labels."""

    num_labels: int = Field(ge=0)
    labels_hash: str
    languages: list[Agreement]
    """Chinese, English, both."""
    people: Agreement | None = None
    """Two labellers with each other, where there are two."""
    alpha: float | None = None
    """Krippendorff's alpha of the levels, where there are three labellers or more."""
    position_consistency: dict[str, Measure] = Field(default_factory=dict)
    """By language."""
    length_correlation: dict[str, Measure] = Field(default_factory=dict)
    """By language: Spearman's between score and length."""
    sensitivity: dict[str, Measure] = Field(default_factory=dict)
    specificity: dict[str, Measure] = Field(default_factory=dict)
    confusion: dict[str, list[list[int]]] = Field(default_factory=dict)
    """Language to counts: rows are people's levels 1 to 5, columns the judge's."""
    faults: list[str] = Field(default_factory=list)
    """Which limits are missed, as sentences; empty: validated."""


class JudgeReport(Contract):
    """One judge of the report."""

    name: str
    revision: str = ""
    score_mode: str
    prompt_hash: str = ""
    num_verdicts: int = Field(ge=0)
    num_unscored: int = Field(ge=0)
    self_test: SelfTest | None = None
    calibration: Calibration | None = None
    length_correlation: dict[str, Measure] = Field(default_factory=dict)
    rule: bool = False
    """Judges by rule: there is nothing to validate."""

    @property
    def validated(self) -> bool:
        """Passed the self-test and, where there are labels, every limit of the calibration."""
        if self.rule:
            return True
        passed = self.self_test is not None and self.self_test.passed
        return passed and (self.calibration is None or not self.calibration.faults)


class JudgeAgreement(Contract):
    """Two judges on the same answers."""

    first: str
    second: str
    languages: list[Agreement]


class CaseRecord(Contract):
    """One row with what every model answered and every judge said: the case browser's line."""

    row: Row
    answers: dict[str, Answer]
    """By model."""
    verdicts: list[Verdict]


class BenchReport(Contract):
    """A whole evaluation: page, table and JSON are made from this alone."""

    version: Literal[1] = 1
    suite: str
    """Names of the suites, such as `smoke`."""
    suite_version: str = ""
    suite_hash: str
    num_rows: int = Field(ge=0)
    charter: str
    charter_hash: str
    created: datetime
    machine: str = ""
    software: dict[str, str] = Field(default_factory=dict)
    models: list[ModelFigures] = Field(min_length=1)
    """In the order in which they are shown: base, prompt-only baseline, stages, current."""
    comparisons: list[ModelComparison] = Field(default_factory=list)
    judges: list[JudgeReport] = Field(min_length=1)
    """The first is the one the figures come from."""
    agreements: list[JudgeAgreement] = Field(default_factory=list)
    pairs: list[PairVerdict] = Field(default_factory=list)
    cases: list[CaseRecord] = Field(default_factory=list)
    attacker: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Round to figures of its attacks: `self_bleu`, `coverage`, `evenness`, `num`; empty without fresh attacks."""
    labels: dict[str, Bilingual] = Field(default_factory=dict)
    """Names of sub-domains and styles."""
