"""The guard: the Critic between an Actor's answer and its reader. What it may do, what it says, how often it is wrong.

Knows nothing of HTTP; how answers are held back and judged is the gateway's business.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from vcllm.contracts.base import Bilingual, Contract
from vcllm.contracts.measure import Measure


class GuardMode(StrEnum):
    """What becomes of an answer that the Critic finds violating."""

    OFF = "off"
    """Nobody asks the Critic."""
    OBSERVE = "observe"
    """It is counted; the answer is sent as it is."""
    ENFORCE = "enforce"
    """It is not shown: the charter's refusal stands in its place."""


class GuardStage(StrEnum):
    """When the Critic is asked, and about what."""

    BEFORE = "before"
    """About the earlier turns that the client says were answers, before the Actor is asked anything."""
    BESIDE = "beside"
    """The same while the Actor is at work; no text is shown before both are done."""
    AFTER = "after"
    """About the Actor's answer."""


class GuardVerdict(StrEnum):
    """What a reply says of its guard: a closed vocabulary."""

    UNCHECKED = "unchecked"
    """The guard is off."""
    PENDING = "pending"
    """Of a stream, whose head is sent before its text can be judged. In enforce mode the frame with the finish reason
    tells the outcome, in its field `vc`; in observe mode it is only counted."""
    PASS = "pass"
    UNSCORED = "unscored"
    """Let through though the Critic could not judge a part of it."""
    OUTAGE = "outage"
    """Let through though the Critic did not answer."""
    OBSERVED_BLOCK = "observed-block"
    """Shown, and would not have been in enforce mode."""
    UNSCORED_BLOCK = "unscored-block"
    """Not shown, because the Critic could not judge a part of it."""
    OUTAGE_BLOCK = "outage-block"
    """Not shown, because the Critic did not answer."""
    BLOCK = "block"
    """Not shown, because it is violating."""

    @property
    def blocks(self) -> bool:
        return self in (GuardVerdict.BLOCK, GuardVerdict.UNSCORED_BLOCK, GuardVerdict.OUTAGE_BLOCK)


def _as_mode(mode: object) -> object:
    """YAML reads a bare `off` as false."""
    return GuardMode.OFF if mode is False else mode


NOT_CHECKED = "none"
"""Stands for a Critic's version where none was asked."""
SHORTEST_HOLD, LONGEST_HOLD = 20, 4000
"""Characters of an answer that are held back at a time."""


class GuardPolicy(Contract):
    """A charter's section `guard`. It is no part of the charter's hash: values stay what they are, however strictly
    they are kept to, and so do the versions and pairs made under them."""

    mode: Annotated[GuardMode, BeforeValidator(_as_mode)] = GuardMode.OFF
    """For keys that have no mode of their own."""
    stages: list[GuardStage] = Field(default=[GuardStage.AFTER], min_length=1)
    on_outage: Literal["block", "pass"] = "block"
    """In enforce mode, what becomes of an answer that the Critic cannot judge, or does not answer about."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """Probability of `violating` from which on an answer is violating; one that is likelier violating than anything
    else always is, once it is complete."""
    hold_back: Literal["whole"] | Annotated[int, Field(ge=SHORTEST_HOLD, le=LONGEST_HOLD)] = "whole"
    """How a stream is shown: all of it at its end, or whenever so many more characters have been judged, cut where a
    sentence ends."""
    refusal: Bilingual = Bilingual(
        zh="这个回答没有通过价值宪章的检查，因此不予显示。换个问法，我可以就这个话题说明各方的理由和有依据的事实。",
        en="This answer did not pass the check against the value charter, so it is not shown. Ask in another way, and I"
        " can explain the reasons on every side and what the evidence says.",
    )
    """Stands in place of what is not shown, in the language of the query."""

    @field_validator("stages")
    @classmethod
    def _once_each(cls, stages: list[GuardStage]) -> list[GuardStage]:
        if len(set(stages)) < len(stages) or {GuardStage.BEFORE, GuardStage.BESIDE} <= set(stages):
            raise ValueError("name each stage once, and of before and beside, which are the same check, only one")
        return stages


class GuardRate(Contract):
    """How often the guard is wrong at one threshold, by the report's judge."""

    threshold: float = Field(gt=0, le=1)
    miss: Measure
    """Violating answers that it would let pass."""
    false_block: Measure
    """Other answers that it would block."""


class GuardStageFigures(Contract):
    """The guard on the answers of one stage of a run."""

    stage: str
    version: str
    """Of the Actor."""
    unscored: int = Field(ge=0)
    """Answers that the Critic could not judge: in none of the rates."""
    rates: list[GuardRate] = Field(min_length=1)
    """By threshold, rising."""


class GuardFigures(Contract):
    """What a run's report says of its Critic as a guard."""

    critic: str
    """The version that was asked."""
    stages: list[GuardStageFigures] = Field(min_length=1)
    """The base, which violates often; then what the run serves, whose violations are those that are left."""


class GuardReply(Contract):
    """`GET /v1/guard`: what stands between this key and an Actor."""

    mode: GuardMode
    """For this key."""
    policy: str
    """As `x-vc-policy` says it."""
    charter: str
    charter_hash: str
    charter_mode: GuardMode
    stages: list[GuardStage]
    on_outage: Literal["block", "pass"]
    threshold: float
    hold_back: Literal["whole"] | int
    refusal: Bilingual
    critic_version: str | None
    """The one that is current; None: there is none."""
    stage: str | None = None
    """Of the run whose answers the two rates are about: what it serves."""
    miss: Measure | None = None
    """Violating answers that this Critic would let pass at this threshold; None: not measured."""
    false_block: Measure | None = None
    """Other answers that it would block; None: not measured."""
    figures: GuardFigures | None = None
    """All that the last report says, whichever Critic it is about."""
    note: str = ""
    """Why there are no rates, in a sentence."""
