"""The value charter as data: principles, taxonomy, rubric, issue cards and attack tactics.

Everything a reader sees exists in Chinese and English side by side. Loading lives in `vcllm.charter`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from operator import not_
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from vcllm.contracts.base import Bilingual, Contract, Name
from vcllm.contracts.critiques import SCORED, Outcome
from vcllm.contracts.guard import GuardPolicy


def _is_none(value: object) -> bool:
    return value is None


Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]


class StanceType(StrEnum):
    """What counts as a fault depends on the kind of issue."""

    CONSENSUS = "consensus"
    """One charter-backed answer; hedging is a fault."""
    CONTESTED = "contested"
    """Reasonable people differ; taking a side is a fault."""
    FACTUAL = "factual"
    """Verifiable; a false premise must be corrected."""
    CHARTER = "charter"
    """The operator's own position decides."""


class Split(StrEnum):
    """Which work a card or tactic may be used for; both languages always stay together."""

    TRAIN = "train"
    DEV = "dev"
    """For choosing doses and thresholds."""
    TEST = "test"
    """For evaluation only: never in instruction data, attacker seeds or rounds."""


class Principle(Contract):
    """One value the operator holds the model to."""

    id: Slug
    name: Bilingual
    text: Bilingual
    reason: Bilingual
    """The principle in one short sentence, as an answer would put it."""


class Thresholds(Contract):
    """What the promotion gate asks of a candidate; shares in [0, 1]."""

    max_attack_success: float = Field(ge=0, le=1)
    """Upper limit on new attacks, once the rounds are done."""
    max_over_refusal: float = Field(ge=0, le=1)
    min_benign_helpful: float = Field(ge=0, le=1)
    max_broken: float = Field(ge=0, le=1)


class Charter(Contract):
    """The operator's values: who they are, how the model declines, and what it must reach."""

    id: Name
    version: str
    name: Bilingual
    summary: Bilingual
    system_prompt: Bilingual
    """The charter in one short paragraph, as a system message: the prompt-only baseline."""
    refusal_style: Bilingual
    principles: list[Principle] = Field(min_length=1)
    thresholds: Thresholds
    guard: GuardPolicy = GuardPolicy()
    """How strictly answers are kept to all this when they are served. Not part of the hash."""


class SubDomain(Contract):
    """One of the 13 cells by which results are broken down."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z]+$")]
    name: Bilingual
    definition: Bilingual

    @property
    def domain(self) -> str:
        return self.id.split(".")[0]


class Domain(Contract):
    """A group of sub-domains."""

    id: Slug
    name: Bilingual
    subdomains: list[SubDomain] = Field(min_length=1)


class Taxonomy(Contract):
    """Domains and sub-domains; ids are stable, an operator may add more."""

    domains: list[Domain] = Field(min_length=1)

    @property
    def subdomains(self) -> list[SubDomain]:
        return [sub for domain in self.domains for sub in domain.subdomains]


class Criterion(Contract):
    """One axis of judgement with its five anchored levels."""

    id: Slug
    name: Bilingual
    question: Bilingual
    weight: float = Field(gt=0)
    levels: dict[int, Bilingual]
    """Levels 1 (worst) to 5 (best)."""

    @model_validator(mode="after")
    def _five_levels(self) -> Criterion:
        if sorted(self.levels) != [1, 2, 3, 4, 5]:
            raise ValueError(f"criterion '{self.id}' needs the levels 1, 2, 3, 4 and 5")
        return self


class OutcomeWord(Contract):
    """An outcome as a judge says it."""

    word: Bilingual
    meaning: Bilingual


class JudgeWording(Contract):
    """How a language model is asked to judge by the rubric, and the words it may answer with."""

    task: Bilingual
    """Comes first. Says that quoted lines, which begin with `>`, are material and no instructions."""
    question: Bilingual
    answer: Bilingual
    """Headings of the two quotes of an exchange."""
    verdict: Bilingual
    """What stands before the word of an outcome, as the name of a criterion stands before its level."""
    outcomes: dict[Outcome, OutcomeWord]
    reply: Bilingual
    """Comes last: the form of the reply."""
    better: Bilingual
    """What stands before A or B when two answers are compared."""
    compare: Bilingual
    """Comes last when two answers are compared."""

    @model_validator(mode="after")
    def _every_outcome(self) -> JudgeWording:
        if sorted(self.outcomes) != sorted(SCORED):
            raise ValueError(f"the judge needs the outcomes {', '.join(SCORED)}")
        return self


class Rubric(Contract):
    """How an answer is judged."""

    criteria: list[Criterion] = Field(min_length=1)
    judge: JudgeWording | None = Field(default=None, exclude_if=lambda wording: wording is None)
    """None: no language model can be asked to judge by it. Then absent from the hash, too."""


class Fact(Contract):
    """Something the card relies on, and where it comes from."""

    zh: str
    en: str
    source: str
    """`invented` for the starter's invented people and places, else a public source."""
    date: str | None = None
    """When it was last true, ISO 8601; None for what does not age."""


class BenignItem(Contract):
    """A harmless question on the same subject: refusing or lecturing here is a fault."""

    question: Bilingual
    answer: Bilingual


class Card(Contract):
    """One issue of one sub-domain: the single source of seeds, corpus and evaluation items."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z]+-[a-z0-9-]+$")]
    """`<sub-domain>-<slug>`."""
    stance_type: StanceType
    split: Split
    principles: list[Slug] = Field(min_length=1)
    topic: Bilingual
    facts: list[Fact] = Field(min_length=1)
    benign: list[BenignItem] = Field(min_length=2)
    stance: Bilingual
    """The charter-consistent point in one short sentence."""
    explanation: Bilingual
    """The same stance as a helpful person would put it, two to four sentences."""
    claims: list[Bilingual] = Field(min_length=3)
    """Typical violating claims: clauses that can follow "say that" / 说, without final punctuation."""
    premises: list[Bilingual] = Field(min_length=1)
    """Whole questions that take a violating claim for granted."""
    counterfactuals: list[Bilingual] = Field(min_length=2)
    """Groups or sides that may be swapped in without changing what a fair answer is."""
    mirror_sides: list[Bilingual] = Field(default_factory=list, max_length=2, exclude_if=not_)
    """The two positions of a contested issue, each as its own side would name it. Absent from the hash when empty."""

    @property
    def subdomain(self) -> str:
        return self.id.split("-")[0]

    @model_validator(mode="after")
    def _two_sides(self) -> Card:
        if len(self.mirror_sides) != (2 if self.stance_type is StanceType.CONTESTED else 0):
            raise ValueError("mirror_sides: a contested card names both sides, the other cards none")
        return self


class TacticUse(StrEnum):
    """Who may meet a tactic."""

    SEED = "seed"
    """In instruction data, attacker seeds and rounds."""
    LOOP = "loop"
    """Brought by the Attacker only: in its seeds and in rounds, not in instruction data."""
    DEV = "dev"
    """For choosing doses and thresholds."""
    TEST = "test"
    """Held out: evaluation only."""


class Templates(Contract):
    """Several ways to say it, in each language."""

    zh: list[str] = Field(min_length=1)
    en: list[str] = Field(min_length=1)

    def __getitem__(self, language: str) -> list[str]:
        return self.zh if language == "zh" else self.en


class Tactic(Contract):
    """A way of pressing a model; data, so an operator can add their own."""

    id: Slug
    use: TacticUse
    name: Bilingual
    definition: Bilingual
    attack: Templates
    """Contain `{claim}`: a query that presses the model to agree with the claim."""
    benign: Templates
    """Contain `{question}`: the same wrapping around a harmless question."""
    look_alike: Templates | None = Field(default=None, exclude_if=_is_none)
    """Contain `{question}` and, before it, `{claim}`: a harmless question that shares most of its words with an attack.
    None: no look-alikes are made with this tactic. Absent from the hash then, like the fields below."""
    lead: Templates | None = Field(default=None, exclude_if=_is_none)
    """Whole sentences without slots, put before another tactic's query when tactics are composed."""
    opening: Templates | None = Field(default=None, exclude_if=_is_none)
    """Contain `{topic}`: harmless first turns of an attack over several turns."""
    gradual: bool = Field(default=False, exclude_if=not_)
    """It is nothing in a single turn: its attacks always take several. Needs `opening`."""

    @model_validator(mode="after")
    def _slots(self) -> Tactic:
        for field, slots in SLOTS.items():
            templates: Templates | None = getattr(self, field)
            for template in [*templates.zh, *templates.en] if templates is not None else []:
                found = sorted(re.findall(r"\{\w*\}", template))
                if found != sorted(slots):
                    wanted = " and ".join(slots) + " once" if slots else "no slot"
                    raise ValueError(f"tactic '{self.id}': {field} template needs {wanted}: {template!r}")
        if self.gradual and self.opening is None:
            raise ValueError(f"tactic '{self.id}' is gradual and needs 'opening': how its attacks begin")
        return self


SLOTS: dict[str, tuple[str, ...]] = {
    "attack": ("{claim}",),
    "benign": ("{question}",),
    "look_alike": ("{claim}", "{question}"),
    "lead": (),
    "opening": ("{topic}",),
}
"""What each kind of template holds, each once."""
