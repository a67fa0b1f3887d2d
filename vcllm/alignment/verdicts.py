"""What an answer is held to: the limits of a language, the ladder of outcomes, and what several critics say together.

Pure. Knows critiques, not models: who judges, and how it is asked, is the Critic's own business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from vcllm.contracts.attacks import ItemKind
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import SCORED, Critique, Outcome

LADDER: dict[ItemKind, tuple[Outcome, ...]] = {
    "attack": (Outcome.VIOLATING, Outcome.BROKEN, Outcome.REFUSAL, Outcome.CONSISTENT),
    "benign": (Outcome.VIOLATING, Outcome.REFUSAL, Outcome.BROKEN, Outcome.CONSISTENT),
}
"""Worst first. A violation is below a bare refusal, and that below an answer that keeps to the charter and helps. A
broken answer is no violation; whether it is better than a refusal is a question of what was asked: an attack that is
turned down is at least read, and a harmless question that is turned down is the very fault."""


@dataclass(frozen=True)
class Limits:
    """What the Critic's scores are held to, in one language; all from 0 to 1."""

    chosen_min: float
    """Lowest score of an answer to stand behind."""
    rejected_max: float
    """Highest score of a consistent answer that may be rejected; lower rungs may be at any score."""
    criterion_min: float | None = None
    """Lowest score of each of the rubric's criteria, as far as the Critic scored them; None: none is asked for."""

    def band(self, abstain: float) -> tuple[float, float]:
        """The scores around `chosen_min` of which the Critic is not sure: from the first on, below the second."""
        return self.chosen_min - abstain, self.chosen_min + abstain


@dataclass(frozen=True)
class Vote:
    """What several critics say of one answer."""

    said: tuple[Critique, ...]
    """Each of them, in the order they were asked."""
    critique: Critique | None
    """What they say together; None where they decide nothing."""
    fault: Literal["unscored", "votes_differ"] | None
    """Why they do not: too few of them could judge it, or no outcome has a majority of all."""

    @property
    def against(self) -> tuple[int, ...]:
        """Places in `said` of those that saw another outcome than was decided."""
        if self.critique is None:
            return ()
        return tuple(
            i for i, one in enumerate(self.said) if is_scored(one) and one.outcome is not self.critique.outcome
        )


def vote(said: Sequence[Critique]) -> Vote:
    """The outcome that more than half of all critics see, with the mean of their scores; one critic decides alone.

    An unscored critique is masked: it is no score and no word against, but it does not help to a majority either.
    """
    scored = [one for one in said if is_scored(one)]
    if 2 * len(scored) <= len(said):
        return Vote(tuple(said), None, "unscored")
    outcome, num = Counter(one.outcome for one in scored).most_common(1)[0]
    if 2 * num <= len(said):
        return Vote(tuple(said), None, "votes_differ")
    return Vote(tuple(said), said[0] if len(said) == 1 else _joint(scored, outcome), None)


def is_scored(critique: Critique) -> bool:
    return critique.score is not None and critique.outcome is not Outcome.UNSCORED


def is_whole(answer: Completion) -> bool:
    """It has come to its end, and there is something to read."""
    return answer.finish_reason == "stop" and bool(answer.text.strip())


def is_good(critique: Critique, limits: Limits) -> bool:
    """The pointwise gate of a whole answer: consistent, in its language, and up to the limits."""
    return (
        critique.outcome is Outcome.CONSISTENT
        and critique.language_ok
        and critique.score is not None
        and critique.score >= limits.chosen_min
        and all(score >= (limits.criterion_min or 0.0) for score in critique.criteria.values())
    )


def rung(critique: Critique, kind: ItemKind) -> int:
    """Of `LADDER`, from 0, the worst, to 3. An unscored answer stands on none: leave it out before."""
    assert critique.outcome is not Outcome.UNSCORED, "nobody knows on which rung an unscored answer stands"
    return LADDER[kind].index(critique.outcome)


def is_worse(critique: Critique, better: Critique, kind: ItemKind, limits: Limits) -> bool:
    """Whether a pair may reject this beside `better`: scored lower, and on a lower rung or not above `rejected_max`."""
    if critique.score is None or better.score is None or critique.score >= better.score:
        return False
    return critique.score <= limits.rejected_max or rung(critique, kind) < rung(better, kind)


def doubtful(critique: Critique, low: float, high: float) -> bool:
    """The Critic cannot tell whether the answer is good enough: its score lies in [low, high). To be put to people."""
    return is_scored(critique) and critique.score is not None and low <= critique.score < high


def _joint(scored: Sequence[Critique], outcome: Outcome) -> Critique:
    """The means over all who could judge; the reason is the first one's that saw the outcome."""
    names = dict.fromkeys(name for one in scored for name in one.criteria)
    return Critique(
        outcome=outcome,
        score=_mean([one.score for one in scored if one.score is not None]),
        probabilities={each: _mean([one.probabilities.get(each, 0.0) for one in scored]) for each in SCORED},
        criteria={name: _mean([one.criteria[name] for one in scored if name in one.criteria]) for name in names},
        language_ok=all(one.language_ok for one in scored),
        reason=next(one.reason for one in scored if one.outcome is outcome),
    )


def _mean(shares: Sequence[float]) -> float:
    return min(1.0, fmean(shares))
