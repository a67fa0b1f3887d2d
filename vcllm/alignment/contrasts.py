"""Pairs of other kinds than best and worst: here a reason from outside the query says which answer is rejected.

Who is rejected is found by `contradictions` and `counterfactuals`; this module holds what both look at, and makes the
pair through the gate that all pairs pass: a good answer of the same query is chosen, votes and comparisons count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vcllm.alignment.pairing import Made, Places, Standing, make_pair, wanted_comparisons
from vcllm.alignment.verdicts import Limits, rung, vote
from vcllm.contracts.attacks import Attack
from vcllm.contracts.base import Language
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import Comparison, Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance, Source
from vcllm.contracts.recipes import CriticPolicy

LimitsOf = Mapping[Language, Limits]


@dataclass(frozen=True)
class Asked:
    """One query of a round with everything that was said of it; sequences as for `make_pair`."""

    attack: Attack
    answers: Sequence[Completion]
    critiques: Sequence[Critique]
    provenance: Provenance
    votes: Sequence[Sequence[Critique]] = ()
    comparisons: Mapping[Places, Comparison] | None = None

    @property
    def language(self) -> Language:
        return self.attack.goal.cell.language

    @property
    def outcomes(self) -> list[Outcome | None]:
        """What the critics together say of each answer; None where they say nothing."""
        said = [vote(views).critique for views in zip(self.critiques, *self.votes, strict=True)]
        return [None if view is None or view.outcome is Outcome.UNSCORED else view.outcome for view in said]

    def standing(self, policy: CriticPolicy, limits: LimitsOf) -> Standing:
        return Standing(self.attack, self.answers, self.critiques, self.votes, policy, limits[self.language])

    def only(self, places: Sequence[int]) -> Asked:
        """The same query, as if these had been its only answers."""
        number = {place: new for new, place in enumerate(places)}
        compared = {
            (number[one], number[other]): comparison
            for (one, other), comparison in (self.comparisons or {}).items()
            if one in number and other in number
        }
        return replace(
            self,
            answers=[self.answers[place] for place in places],
            critiques=[self.critiques[place] for place in places],
            votes=[[row[place] for place in places] for row in self.votes],
            comparisons=None if self.comparisons is None else compared,
        )


@dataclass(frozen=True)
class Contrast:
    """An answer that is to be rejected beside a good one to the same query."""

    asked: Asked
    rejected: int
    """Its place among the answers."""
    source: Source


def hardest(asked: Asked, outcomes: Collection[Outcome], policy: CriticPolicy, limits: LimitsOf) -> int | None:
    """Of the answers with these outcomes the one to be rejected; None where a pair may reject none of them.

    On the lowest rung the highest score: it came nearest to passing for a good one, whereas the query's own best and
    worst already reject the plainest fault.
    """
    standing = asked.standing(policy, limits)
    able = [
        place
        for place, view in standing.views.items()
        if view.outcome in outcomes and _beside(asked, place, policy, limits).standing(policy, limits).worst is not None
    ]
    kind = asked.attack.goal.kind
    return min(able, key=lambda at: (rung(standing.views[at], kind), -standing.score(at), at), default=None)


def comparisons_of(contrast: Contrast, policy: CriticPolicy, limits: LimitsOf) -> list[Places]:
    """What `contrast_pair` needs to know; places among all answers of the query. Most are asked for it anyway."""
    places = _places(contrast.asked, contrast.rejected, policy, limits)
    few = contrast.asked.only(places)
    wanted = wanted_comparisons(few.attack, few.answers, few.critiques, policy, limits[few.language], votes=few.votes)
    return [(places[one], places[other]) for one, other in wanted]


def contrast_pair(contrast: Contrast, policy: CriticPolicy, limits: LimitsOf) -> Made:
    """The pair, or why the comparisons do not stand behind it. With comparisons, `comparisons_of` are among them."""
    few = _beside(contrast.asked, contrast.rejected, policy, limits)
    made = make_pair(
        few.attack,
        few.answers,
        few.critiques,
        few.provenance,
        policy,
        limits[few.language],
        created=0.0,  # of reviews, and there is none beside a good answer
        votes=few.votes,
        comparisons=few.comparisons,
    )
    if made.pair is None:
        return made
    assert made.pair.rejected is not None, "a contrast rejects what `hardest` has found"
    return replace(made, pair=made.pair.model_copy(update={"source": contrast.source}))


def pairs_of(contrasts: Sequence[Contrast], policy: CriticPolicy, limits: LimitsOf) -> list[Pair]:
    """The pairs of those contrasts that the comparisons stand behind."""
    made = (contrast_pair(contrast, policy, limits) for contrast in contrasts)
    return [one.pair for one in made if one.pair is not None]


def _beside(asked: Asked, rejected: int, policy: CriticPolicy, limits: LimitsOf) -> Asked:
    return asked.only(_places(asked, rejected, policy, limits))


def _places(asked: Asked, rejected: int, policy: CriticPolicy, limits: LimitsOf) -> list[int]:
    """The answers that may be chosen, and the one to be rejected."""
    contenders = asked.standing(policy, limits).contenders
    return sorted({*contenders, rejected})
