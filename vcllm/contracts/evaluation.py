"""What is measured: frozen items, the judge's rulings, the figures of a stage and the report of a run.

Shares lie in [0, 1]. A figure always travels with its 95 % interval and its `n`. Who judges, and how the
figures come about, is the business of `vcllm.evaluation`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from vcllm.contracts.attacks import ItemKind
from vcllm.contracts.base import Bilingual, Contract, Language, Name
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.guard import GuardFigures
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.matrix import Matrix
from vcllm.contracts.measure import UNMEASURED as UNMEASURED
from vcllm.contracts.measure import Measure as Measure
from vcllm.contracts.recipes import EvaluationParams
from vcllm.contracts.rounds import RoundWork

Suite = Literal["seen", "held_out", "held_out_cards", "benign", "retention"]
AttackSuite = Literal["seen", "held_out", "held_out_cards"]
ATTACK_SUITES: tuple[AttackSuite, ...] = ("seen", "held_out", "held_out_cards")
"""Training tactics on training cards; held-out tactics on training cards; both held out."""


class EvalItem(Contract):
    """One question of the frozen evaluation, in one language."""

    id: str = Field(min_length=1)
    pair_id: str = Field(min_length=1)
    """The same for the item and its twin in the other language."""
    language: Language
    kind: ItemKind
    suite: Suite
    """`retention` grows with the rounds; the other suites are the same for every stage."""
    card: str
    goal: int = Field(ge=0)
    """Index into the card's claims (attack) or benign items (benign)."""
    subdomain: str
    tactic: str
    query: str = Field(min_length=1)
    system: bool = False
    """Asked with the charter as the system message."""

    @model_validator(mode="after")
    def _suite_fits_kind(self) -> EvalItem:
        if self.suite != "retention" and (self.suite == "benign") != (self.kind == "benign"):
            raise ValueError(f"item '{self.id}': suite '{self.suite}' holds no items of kind '{self.kind}'")
        return self


class Judgement(Contract):
    """What the report's judge says of one answer."""

    item: str
    """Id of the item."""
    answer: str
    outcome: Outcome
    detail: str = ""
    """The rule that decided, such as `wrong_language`, `wrong_claim` or `truncated`."""


class BilingualMeasure(Contract):
    """One figure in each language, and over both."""

    zh: Measure
    en: Measure
    mean: Measure
    """Over the answers of both languages."""

    def __getitem__(self, language: Language | str) -> Measure:
        return self.zh if language == Language.ZH else self.en


class PooledMeasure(Measure):
    """A figure over both languages, with each of them beside it."""

    zh: Measure
    en: Measure

    def __getitem__(self, language: Language | str) -> Measure:
        return self.zh if language == Language.ZH else self.en


class SuiteMeasures(Contract):
    """One figure on each attack suite."""

    seen: BilingualMeasure
    held_out: BilingualMeasure
    held_out_cards: BilingualMeasure

    def __getitem__(self, suite: AttackSuite) -> BilingualMeasure:
        return {"seen": self.seen, "held_out": self.held_out, "held_out_cards": self.held_out_cards}[suite]


class CellMeasures(Contract):
    """One figure in each language."""

    zh: Measure
    en: Measure

    def __getitem__(self, language: Language | str) -> Measure:
        return self.zh if language == Language.ZH else self.en


class Example(Contract):
    """One judged answer, shown as it is."""

    item: EvalItem
    judgement: Judgement


class StageMeasures(Contract):
    """Everything the frozen items say about one version of the Actor."""

    attack_success: SuiteMeasures
    """Violating answers to attacks."""
    consistent: SuiteMeasures
    """Answers to attacks that keep to the charter; read it beside `attack_success`: garbage lowers both."""
    over_refusal: PooledMeasure
    """Harmless questions that were refused or lectured."""
    benign_helpful: PooledMeasure
    """Harmless questions that were answered well."""
    agreement: Measure
    """Pairs of held-out attacks with the same outcome in both languages; high where both violate, too."""
    both_consistent: Measure
    """The same pairs: both answers keep to the charter."""
    broken: PooledMeasure
    """Garbled, cut off, off topic or in the wrong language, over attacks and harmless questions."""
    refusal: PooledMeasure
    """Attacks refused without a word on the matter."""
    by_subdomain: dict[str, CellMeasures]
    """Attack success over all attack suites."""
    unscored: int = Field(ge=0)
    """Answers nobody could judge: left out of every figure."""
    retention: Measure | None = None
    """Queries of earlier rounds that are still answered well; None before there are any."""
    examples: list[Example] = Field(default_factory=list)
    judge: Name | None = None
    """The Critic version that ruled; None: the starter's rules."""


class ArchiveCell(Contract):
    """One square of the archive."""

    tried: int = Field(ge=0)
    won: int = Field(ge=0)
    """Of them, answered with a violation."""


class RoundSummary(Contract):
    """One adversarial round; counts are None where they were not taken."""

    number: int = Field(ge=1)
    num_attacks: int | None = None
    """Queries asked of the Attacker."""
    num_valid: int | None = None
    """Of them, what passed every filter."""
    num_refused: int | None = None
    """The Attacker declined to write them."""
    num_leaked: int | None = None
    """Dropped for a wording of a held-out tactic."""
    num_novel: int | None = None
    """Unlike every earlier query."""
    num_benign: int | None = None
    """Of the valid queries, those that wrap a harmless question."""
    num_pairs: int | None = None
    """Approved by the Critic and trained on."""
    num_replayed: int | None = None
    """Pairs of earlier rounds trained on again."""
    num_unscored: int | None = None
    """Answers the Critic could not judge."""
    attacker_success: Measure | None = None
    """Attacks of this round with a violating answer, by the report's judge."""
    critic_agreement: Measure | None = None
    """Answers of this round on which the Critic and the report's judge say the same."""
    coverage: float | None = Field(default=None, ge=0, le=1)
    """Share of the archive's squares that were tried so far."""
    archive: dict[str, ArchiveCell] = Field(default_factory=dict)
    """`sub-domain/tactic/language` to what was tried so far."""
    work: RoundWork | None = None
    """None in reports from before it was taken."""


class StageResult(StageMeasures):
    """One stage of the run: `StageResult(name=..., seconds=..., **dict(measure_stage(...)))`."""

    name: str
    """`base`, `base_prompted`, `cpt`, `sft`, `round-1`, ..., `control`."""
    seconds: float = Field(ge=0)
    """Wall time of the stage with its evaluation."""
    peak_rss_bytes: int | None = None
    """Largest resident memory of its processes; None: not taken."""
    version: str | None = None
    """The version of the Actor that was asked."""
    parent: str | None = None
    """The version it was trained from."""
    gate: GateVerdict | None = None
    round: RoundSummary | None = None


class StageComparison(Contract):
    """Two stages on the same items: how much a share moved from `before` to `after`."""

    family: Literal["primary", "subdomain"]
    """What is corrected together: the primary measures (Holm) or the cells (Benjamini-Hochberg)."""
    measure: str
    """`attack_success.held_out`, `over_refusal`, ...; for sub-domains, the sub-domain."""
    language: Language | None = None
    """None: both."""
    before: str
    after: str
    difference: Measure
    """Share in `after` minus share in `before`."""
    gained: int = Field(ge=0)
    """Answers counted in `after` only."""
    lost: int = Field(ge=0)
    """Answers counted in `before` only."""
    p: float = Field(ge=0, le=1)
    """Exact McNemar, two-sided."""
    p_adjusted: float | None = Field(default=None, ge=0, le=1)
    """Corrected for its family; None until then."""


class Report(Contract):
    """One run, complete: the page and the table are made from this alone."""

    version: Literal[1] = 1
    recipe: str
    seed: int
    charter: str
    """Name of the charter."""
    charter_hash: str
    seconds: float = Field(ge=0)
    """Wall time of the whole run."""
    peak_rss_bytes: int | None = None
    machine: str
    commit: str
    created: datetime
    software: dict[str, str] = Field(default_factory=dict)
    """Library to version."""
    decoding: EvaluationParams
    """How every stage was asked."""
    judge: Bilingual
    """Who judged, and how far that judge can be trusted."""
    starter: bool = True
    """Trained from nothing on the starter world; the page then says what that does and does not show."""
    stages: list[StageResult] = Field(min_length=1)
    """In the order of the run."""
    comparisons: list[StageComparison] = Field(default_factory=list)
    matrix: Matrix | None = None
    """None: no round was played, or it was not taken."""
    guard: GuardFigures | None = None
    """The Critic as a guard; None: not measured."""
    choices: list[Bilingual] = Field(default_factory=list)
    """What was decided by hand and how, for the section on method."""
    labels: dict[str, Bilingual] = Field(default_factory=dict)
    """Names of sub-domains and tactics, so that the report can be read without its charter."""

    @model_validator(mode="after")
    def _stage_names_differ(self) -> Report:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"every stage of a report needs its own name: {', '.join(names)}")
        return self

    def stage(self, name: str) -> StageResult | None:
        """None where the run did not have it."""
        return next((stage for stage in self.stages if stage.name == name), None)
