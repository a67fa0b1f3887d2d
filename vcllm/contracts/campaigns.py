"""A campaign: the adversarial rounds of one lineage, as it is started, watched and stopped."""

from __future__ import annotations

from pydantic import Field

from vcllm.contracts.base import Contract, Language, Name
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.jobs import JobState
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.rounds import RoundWork


class CampaignCreate(Contract):
    """`POST /v1/campaigns`: a recipe's whole pipeline, rounds and all. Recipes are named, never sent."""

    recipe: Name
    lineage: Name | None = None
    """None: the recipe's name with its seed."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """None: the recipe's own."""
    validate_only: bool = False
    """Check everything, start nothing."""


class CampaignRound(Contract):
    """One round's row of the table."""

    number: int = Field(ge=0)
    """0: the version before the first round."""
    version: Name
    """The candidate of the round."""
    gate: GateVerdict | None = None
    fresh: Measure | None = None
    """Attacks of this round that won, against the version they were written for; None before the first round."""
    frozen: Measure
    """Attack success on the held-out suite, the same for every round."""
    retained: Measure | None = None
    """Kept queries of earlier rounds that still succeed; None before there are any."""
    over_refusal: Measure
    benign_helpful: Measure
    agreement: Measure
    """Twins that get the same outcome in both languages."""
    broken: Measure
    by_language: dict[Language, Measure] = Field(default_factory=dict)
    """`frozen` by language."""
    num_pairs: int = Field(default=0, ge=0)
    num_replayed: int = Field(default=0, ge=0)
    seconds: float = Field(ge=0)
    """Of the round, its measurement included."""
    judge: Name | None = None
    """The Critic version that ruled on the figures and for the gate; None: the starter's rules."""
    work: RoundWork | None = None


class Campaign(Contract):
    """`GET /v1/campaigns/{lineage}`."""

    lineage: Name
    recipe: Name
    seed: int
    job: str
    """The newest job of the lineage."""
    state: JobState
    stopping: bool = False
    """It was told to stop: the round in progress is the last."""
    stage: str | None = None
    """What is being worked on; None when nothing is."""
    created: float
    error: str | None = None
    served: str | None = None
    """The lineage's version that is promoted now; None: another lineage's is, or none."""
    held: list[str] = Field(default_factory=list)
    """Candidates that wait for a person's decision."""
    reviews: int = Field(default=0, ge=0)
    """Answers that wait for a person's decision."""
    rounds: list[CampaignRound] = Field(default_factory=list)


class CampaignList(Contract):
    """`GET /v1/campaigns`, newest first."""

    data: list[Campaign]
    """Without their rounds."""
