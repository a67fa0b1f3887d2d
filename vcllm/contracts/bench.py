"""VC-Bench as data: units in both languages side by side, the rows made of them, and the judge's self-test.

A unit is one question in Chinese and English; a row is one of its halves. Who asks, who judges and what is made
of the answers stands in `vcllm.contracts.answers`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from vcllm.contracts.base import Bilingual, Contract, Language
from vcllm.contracts.charter import Fact, Slug, Split, StanceType

UNIT_ID = r"^(?P<subdomain>[a-z]+\.[a-z]+)-(?P<kind>[a-z]+)-(?P<number>\d{3})$"
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
TopicSlug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


DOMAINS = {"race": "race", "soc": "society", "pol": "politics"}
"""The shipped taxonomy's domains by how the ids of their sub-domains begin."""


def domain_of(subdomain: str) -> str:
    """Of a sub-domain's id, or of one that begins with it; an operator's own domain is named by its beginning."""
    start = subdomain.split(".")[0]
    return DOMAINS.get(start, start)


class UnitKind(StrEnum):
    """In which way a unit asks."""

    DIRECT = "direct"
    """A controversial question, asked openly."""
    PREMISE = "premise"
    """Takes a claim that the charter rejects for granted."""
    WRAPPER = "wrapper"
    """Wraps the demand for such a claim: role-play, authority, hypothesis, translation, drip-feed, academic cover."""
    COUNTERFACTUAL = "counterfactual"
    """The same question on two groups; a fair answer does not depend on the group."""
    MIRROR = "mirror"
    """The same request for either side of a contested question."""
    BENIGN = "benign"
    """Harmless, in the words of the others: refusing or lecturing is the fault."""
    PRESSURE = "pressure"
    """Four or five turns that press for the claim harder and harder."""


IN_SETS = (UnitKind.COUNTERFACTUAL, UnitKind.MIRROR)
"""Two units of these kinds make one set."""


class AttackStyle(StrEnum):
    """How a unit presses; absent where it does not."""

    LOADED_STATISTIC = "loaded_statistic"
    ASSUMED_FACT = "assumed_fact"
    ANECDOTE = "anecdote"
    ROLE_PLAY = "role_play"
    AUTHORITY = "authority"
    HYPOTHETICAL = "hypothetical"
    TRANSLATION = "translation"
    DRIP_FEED = "drip_feed"
    ACADEMIC_COVER = "academic_cover"
    CONSENSUS_CLAIM = "consensus_claim"
    EMOTIONAL_APPEAL = "emotional_appeal"
    REPEATED_DEMAND = "repeated_demand"


class Expected(StrEnum):
    """What a good answer does."""

    ANSWER = "answer"
    """Answers the question, by the reference stance."""
    ANSWER_BALANCED = "answer_balanced"
    """Gives each side its best case and joins none."""
    CORRECT_PREMISE = "correct_premise"
    """Corrects what the question takes for granted, then helps with what remains."""
    DECLINE_WITH_REASON = "decline_with_reason"
    """Does not do what is asked, says why, and offers what does help."""
    COMPLY_FULLY = "comply_fully"
    """Simply helps."""


class Half(Contract):
    """One language of a unit."""

    prompt: list[Text] = Field(min_length=1, max_length=5)
    """The user's turns; one, except under pressure. Later turns are said whatever the model answers."""
    stance: Text
    """The reference: what a good answer comes to, in one or two sentences."""
    must: list[Text] = Field(min_length=1)
    must_not: list[Text] = Field(min_length=1)
    nice: list[Text] = Field(default_factory=list)
    """What the judge looks for, looks out for, and may reward."""


class Unit(Contract):
    """One question of the set in both languages; the same meaning, written natively in each."""

    id: Annotated[str, StringConstraints(pattern=UNIT_ID)]
    """`<sub-domain>-<kind>-<number>`."""
    topic: TopicSlug
    """What it is about; never shared between splits."""
    stance_type: StanceType
    expected: Expected
    attack_style: AttackStyle | None = None
    """None for harmless questions and for those that do not press."""
    principles: list[Slug] = Field(min_length=1)
    set: TopicSlug | None = None
    """The set of a counterfactual or mirror unit; unique within the sub-domain."""
    group: Bilingual | None = None
    """The group that is swapped, exactly as it stands in the prompts."""
    group_role: Literal["advantaged", "disadvantaged", "peer"] | None = None
    """How the group is usually treated, compared with the other of its set."""
    mirror_side: Literal["a", "b"] | None = None
    lookalike_of: str | None = None
    """Of a harmless question: the unit of the same file whose words it shares."""
    locale: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$|^neutral$")] = "neutral"
    """The country that the prompt names, or `neutral`."""
    tags: list[Slug] = Field(default_factory=list)
    facts: list[Fact] = Field(default_factory=list)
    """For factual units: what is true, where it stands and when it was last checked."""
    difficulty: int = Field(ge=1, le=3)
    zh: Half
    en: Half

    def __getitem__(self, language: Language | str) -> Half:
        return self.zh if language == Language.ZH else self.en

    @property
    def subdomain(self) -> str:
        return self.id.split("-")[0]

    @property
    def domain(self) -> str:
        return domain_of(self.id)

    @property
    def kind(self) -> UnitKind:
        return UnitKind(self.id.split("-")[1])

    @property
    def cluster(self) -> str:
        """What is drawn as one when intervals are made: the set, or the unit itself."""
        return f"{self.subdomain}-{self.set}" if self.set else self.id

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Unit:
        if self.id.split("-")[1] not in set(UnitKind):
            raise ValueError(f"'{self.id}': the kind in the id is none of {', '.join(UnitKind)}")
        for fault in _kind_faults(self):
            raise ValueError(f"'{self.id}': {fault}")
        return self


def _kind_faults(unit: Unit) -> list[str]:
    """What does not go together, each as a sentence."""
    kind, faults = unit.kind, []
    turns = {len(unit.zh.prompt), len(unit.en.prompt)}
    if len(turns) > 1:
        faults.append("the two languages have different numbers of turns")
    if kind is UnitKind.PRESSURE and not turns <= {4, 5}:
        faults.append("pressure takes 4 or 5 turns")
    if kind is not UnitKind.PRESSURE and turns != {1}:
        faults.append("only pressure has several turns")
    if (unit.set is not None) != (kind in IN_SETS):
        faults.append("`set` is for counterfactual and mirror units, and for each of them")
    if kind is UnitKind.COUNTERFACTUAL and (unit.group is None or unit.group_role is None):
        faults.append("a counterfactual unit needs `group` and `group_role`")
    if (unit.mirror_side is not None) != (kind is UnitKind.MIRROR):
        faults.append("`mirror_side` is for mirror units, and for each of them")
    if (unit.lookalike_of is not None) != (kind is UnitKind.BENIGN):
        faults.append("`lookalike_of` is for benign units, and for each of them")
    if (kind is UnitKind.BENIGN) != (unit.expected is Expected.COMPLY_FULLY):
        faults.append("`comply_fully` is what benign units expect, and only they")
    if kind in (UnitKind.PREMISE, UnitKind.WRAPPER, UnitKind.PRESSURE) and unit.attack_style is None:
        faults.append("`attack_style` is missing")
    if kind in (UnitKind.DIRECT, UnitKind.BENIGN) and unit.attack_style is not None:
        faults.append("direct and benign units have no `attack_style`")
    if unit.stance_type is StanceType.FACTUAL and not unit.facts:
        faults.append("a factual unit needs `facts` with source and date")
    return faults


class Turn(Contract):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Row(Contract):
    """One prompt in one language: what is asked, and what the judge is told of it.

    Also the shape of items imported from other sets: those have no rubric, and some have choices.
    """

    id: str = Field(min_length=1)
    """`vcb-<unit>-<language>` for our own."""
    pair_id: str = Field(min_length=1)
    """The same for the row and its twin in the other language."""
    cluster_id: str = Field(min_length=1)
    set_id: str | None = None
    lang: Language
    domain: str
    subdomain: str
    kind: str
    """A `UnitKind`, or for choices `choice`."""
    attack_style: str | None = None
    stance_type: StanceType | None = None
    """None where a set does not say."""
    topic: str = ""
    prompt: list[str] = Field(min_length=1)
    """The user's turns."""
    expected: Expected | None = None
    reference_stance: str = ""
    must: list[str] = Field(default_factory=list)
    must_not: list[str] = Field(default_factory=list)
    nice: list[str] = Field(default_factory=list)
    facts: list[str] = Field(default_factory=list)
    """What is true, in the row's language, with its date where it ages: for the judge, who need not know."""
    principles: list[str] = Field(default_factory=list)
    group: str | None = None
    group_role: str | None = None
    mirror_side: Literal["a", "b"] | None = None
    locale: str = "neutral"
    tags: list[str] = Field(default_factory=list)
    difficulty: int | None = None
    split: Split = Split.TEST
    choices: list[str] = Field(default_factory=list)
    """Of a multiple-choice item, in order; the prompt does not list them."""
    answer_index: int | None = None
    scorer: Literal["judge", "mc", "bbq", "cbbq", "gold"] = "judge"
    meta: dict[str, str] = Field(default_factory=dict)
    """What a scorer needs besides, such as the polarity of a BBQ question."""
    origin: str
    """`vc-bench@1.0`, `import:xstest@<revision>`, ..."""
    canary: str = ""
    """In test rows: text that must not appear in anyone's training data."""


class SelfTestFault(StrEnum):
    """What is wrong with the bad answer of a self-test pair."""

    STEREOTYPE = "stereotype"
    ONE_SIDED = "one_sided"
    WRONG_FACT = "wrong_fact"
    PREACHY_REFUSAL = "preachy_refusal"
    ACCEPTS_PREMISE = "accepts_premise"


class SelfTestHalf(Contract):
    """One language of a self-test pair."""

    prompt: Text
    stance: Text
    must: list[Text] = Field(min_length=1)
    must_not: list[Text] = Field(min_length=1)
    good: Text
    bad: Text


class SelfTestPair(Contract):
    """A good and a bad answer to one question: a judge that cannot tell them apart measures nothing."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z]+-selftest-\d{3}$")]
    stance_type: StanceType
    expected: Expected
    fault: SelfTestFault
    principles: list[Slug] = Field(min_length=1)
    zh: SelfTestHalf
    en: SelfTestHalf

    def __getitem__(self, language: Language | str) -> SelfTestHalf:
        return self.zh if language == Language.ZH else self.en

    @property
    def subdomain(self) -> str:
        return self.id.split("-")[0]
