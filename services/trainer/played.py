"""What a round, or a part of it, has produced. Plain data with what follows from it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from services.trainer.asking import Clock, Versions
from vcllm.alignment.pairing import Places, success_share
from vcllm.alignment.updates import Attempt
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.archive import ArchiveFigures
from vcllm.contracts.attacks import Attack, attack_prompt
from vcllm.contracts.base import Language
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import Comparison, Critique, Outcome
from vcllm.contracts.pairs import Pair
from vcllm.contracts.reviews import ReviewItem
from vcllm.contracts.rounds import PairCounts, Steering


@dataclass(frozen=True)
class Turnout:
    """One attack that passed the filters, and all that came of it."""

    attack: Attack
    versions: Versions
    trace: str
    answers: list[Completion]
    critiques: list[Critique]
    votes: list[list[Critique]]
    """By each further critic, one critique for each answer."""
    embedding: list[float]
    comparisons: dict[Places, Comparison] | None = None
    """None: not asked for yet."""

    @property
    def success(self) -> float | None:
        """Share of the judged answers that violate the charter; None when none could be judged."""
        return success_share(self.critiques)

    @property
    def refusal(self) -> float | None:
        """Share of the judged answers that refuse."""
        scored = [critique for critique in self.critiques if critique.score is not None]
        return sum(one.outcome is Outcome.REFUSAL for one in scored) / len(scored) if scored else None

    @property
    def worst_answer(self) -> str:
        """The answer the Critic likes least; empty when none could be judged."""
        scored = [(one.score, i) for i, one in enumerate(self.critiques) if one.score is not None]
        return self.answers[min(scored)[1]].text if scored else ""


@dataclass(frozen=True)
class Part:
    """A part of a round: all of it, or what was prepared while another trained."""

    num_asked: int
    dropped: Counter[str]
    turnouts: list[Turnout]
    limits: Mapping[Language, Limits]
    """What the Critic's scores were held to when comparisons were asked for: its pairs are made by the same."""
    seconds: Counter[str]


@dataclass(frozen=True)
class MadePairs:
    """The pairs of a round, and what became of the rest."""

    pairs: list[Pair]
    counts: PairCounts
    reviews: list[ReviewItem] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """A whole round."""

    number: int
    versions: Versions
    steering: Steering
    parts: list[Part]
    made: MadePairs
    novelty: list[float]
    """Of every turnout."""
    figures: ArchiveFigures
    """The archive once the round was entered."""
    cell_rates: list[float]
    """Moving success rates of the cells that were tried so far."""
    num_ahead: int
    clock: Clock

    @cached_property
    def turnouts(self) -> list[Turnout]:
        return [turnout for part in self.parts for turnout in part.turnouts]

    @property
    def attacks(self) -> list[Attack]:
        """Those that passed the filters."""
        return [turnout.attack for turnout in self.turnouts]

    @property
    def num_asked(self) -> int:
        return sum(part.num_asked for part in self.parts)

    @property
    def dropped(self) -> Counter[str]:
        """Attacks that fell to a filter, by reason."""
        return sum((part.dropped for part in self.parts), Counter())

    @property
    def seconds(self) -> Counter[str]:
        """By phase, of playing it."""
        return sum((part.seconds for part in self.parts), Counter())

    @property
    def pairs(self) -> list[Pair]:
        return self.made.pairs

    @cached_property
    def attempts(self) -> list[Attempt]:
        """The attacks, harmless ones left out, as the Attacker learns from them."""
        return [
            Attempt(
                attack_prompt(turnout.attack.goal, turnout.attack.history),
                turnout.attack.query,
                turnout.success,
                novelty,
                cell=turnout.attack.goal.cell.key,
            )
            for turnout, novelty in zip(self.turnouts, self.novelty, strict=True)
            if turnout.attack.goal.kind == "attack"
        ]
