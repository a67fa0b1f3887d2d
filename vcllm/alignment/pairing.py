"""From the Actor's answers and the Critic's view of them to pairs: best and worst of k, on the policy's own answers.

What is good is decided answer by answer, which of the good ones is chosen by comparisons. On a harmless question the
refusal is what gets rejected. An unscored answer is neither chosen nor rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from vcllm.alignment.verdicts import Limits, Vote, doubtful, is_good, is_scored, is_whole, is_worse, rung, vote
from vcllm.contracts.attacks import Attack
from vcllm.contracts.base import digest
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import Comparison, Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.recipes import CriticPolicy
from vcllm.contracts.reviews import ReviewItem

MOST_CONTENDERS = 3
"""Good answers that are compared: each with every other would be k (k - 1) / 2 comparisons, in two orders."""

DropReason = Literal["no_good_answer", "doubtful", "unscored", "votes_differ", "tie"]
"""Why a query makes no pair. `doubtful`: its best answer is put to people. `unscored`: no answer, or not the comparison
that counts, could be judged. `votes_differ`: no good answer, and on one of them the critics are split; or the
comparison prefers what was to be rejected. `tie`: the comparison cannot tell the two apart."""

Places = tuple[int, int]
"""Two answers to one query, by their places among them."""


@dataclass(frozen=True)
class Made:
    """What came of one query: a pair, or why there is none."""

    pair: Pair | None = None
    reason: DropReason | None = None
    review: ReviewItem | None = None
    """To be put to people; only where the reason is `doubtful`."""


def make_pair(
    attack: Attack,
    answers: Sequence[Completion],
    critiques: Sequence[Critique],
    provenance: Provenance,
    policy: CriticPolicy,
    limits: Limits,
    *,
    created: float,
    votes: Sequence[Sequence[Critique]] = (),
    comparisons: Mapping[Places, Comparison] | None = None,
) -> Made:
    """The pair of one query. Its `rejected` is None when no answer is bad enough: then the best is approved on its own.

    limits: of the query's language. created: Unix seconds, for what goes to people. votes: of each further critic, one
    critique for each answer. comparisons: those of `wanted_comparisons` with the same arguments; None goes by score.
    """
    standing = Standing(attack, answers, critiques, votes, policy, limits)
    if not standing.contenders:
        reason = standing.fault
        review = _review(attack, answers, standing, provenance, created) if reason == "doubtful" else None
        return Made(reason=reason, review=review)
    asked = comparisons if policy.pairwise and comparisons is not None else {}
    merit = _wins(asked)
    chosen = max(standing.contenders, key=lambda place: (merit[place], standing.score(place), -place))
    rejected = standing.worst
    if rejected is not None and policy.pairwise and comparisons is not None:
        assert (chosen, rejected) in comparisons, "compare what `wanted_comparisons` names for the same arguments"
        if (fault := _fault(comparisons[chosen, rejected])) is not None:
            return Made(reason=fault)
    return Made(pair=_pair(attack, answers, standing, chosen, rejected, provenance))


def wanted_comparisons(
    attack: Attack,
    answers: Sequence[Completion],
    critiques: Sequence[Critique],
    policy: CriticPolicy,
    limits: Limits,
    *,
    votes: Sequence[Sequence[Critique]] = (),
) -> list[Places]:
    """What `make_pair` needs to know: the best good answers against each other and against the worst; at most six."""
    if not policy.pairwise:
        return []
    standing = Standing(attack, answers, critiques, votes, policy, limits)
    against = [] if standing.worst is None else [(place, standing.worst) for place in standing.contenders]
    return [*combinations(standing.contenders, 2), *against]


def success_share(critiques: Sequence[Critique]) -> float | None:
    """Share of scored answers that violate the charter; None when none was scored. A broken one does not."""
    scored = [critique for critique in critiques if critique.score is not None]
    if not scored:
        return None
    return sum(critique.outcome is Outcome.VIOLATING for critique in scored) / len(scored)


def review_id(attack: Attack, answer: str, lineage: str) -> str:
    """The same answer to the same conversation is asked of people once."""
    turns = [message.model_dump(mode="json") for message in attack.history]
    return digest([attack.query, turns, answer, lineage])


class Standing:
    """Where the answers to one query stand after the pointwise gate, before any comparison."""

    def __init__(
        self,
        attack: Attack,
        answers: Sequence[Completion],
        critiques: Sequence[Critique],
        votes: Sequence[Sequence[Critique]],
        policy: CriticPolicy,
        limits: Limits,
    ) -> None:
        self.kind, self.limits, self.band = attack.goal.kind, limits, limits.band(policy.abstain)
        self.answers = answers
        self.ballots: list[Vote] = [vote(said) for said in zip(critiques, *votes, strict=True)]
        assert len(self.ballots) == len(answers), "one critique for each answer"
        views = {place: ballot.critique for place, ballot in enumerate(self.ballots)}
        self.views: dict[int, Critique] = {place: view for place, view in views.items() if view and is_scored(view)}
        """What is said of the answers that could be judged, by place."""
        readable = [place for place in self.views if is_whole(answers[place]) and self.views[place].language_ok]
        unsure = [place for place in readable if doubtful(self.views[place], *self.band)]
        good = [place for place in readable if place not in unsure and is_good(self.views[place], limits)]
        self.contenders = self._best(good)[:MOST_CONTENDERS]
        """Good answers that differ, best score first."""
        self.doubt = None if good or not unsure else self._best(unsure)[0]
        """The best answer that people are asked about."""
        self.worst = self._worst(self.contenders if self.doubt is None else [self.doubt])
        """What a pair may reject beside any of them."""

    def score(self, place: int) -> float:
        score = self.views[place].score
        assert score is not None, "only scored answers stand here"
        return score

    @property
    def fault(self) -> DropReason:
        """Why no answer can be chosen."""
        if self.doubt is not None:
            return "doubtful"
        if any(ballot.fault == "votes_differ" for ballot in self.ballots):
            return "votes_differ"
        return "no_good_answer" if self.views else "unscored"

    def _best(self, places: Sequence[int]) -> list[int]:
        """By score, best first; of equal texts the first one."""
        by_text: dict[str, int] = {}
        for place in sorted(places, key=lambda place: (-self.score(place), place)):
            by_text.setdefault(self.answers[place].text, place)
        return list(by_text.values())

    def _worst(self, beside: Sequence[int]) -> int | None:
        """The lowest rung, and on it the lowest score; on a harmless question a refusal before all others."""
        if not beside:
            return None
        lowest, texts = self.views[beside[-1]], {self.answers[place].text for place in beside}
        places = [
            place
            for place, view in self.views.items()
            if self.answers[place].text not in texts
            and self.answers[place].text.strip()
            and not doubtful(view, *self.band)
            and not is_good(view, self.limits)
            and is_worse(view, lowest, self.kind, self.limits)
        ]
        return min(places, key=self._badness, default=None)

    def _badness(self, place: int) -> tuple[bool, int, float, int]:
        view = self.views[place]
        sought = self.kind == "benign" and view.outcome is Outcome.REFUSAL
        return not sought, rung(view, self.kind), self.score(place), place


def _wins(comparisons: Mapping[Places, Comparison]) -> Counter[int]:
    """Wins less losses of each answer (Copeland's score); ties and what could not be judged count for nobody."""
    merit: Counter[int] = Counter()
    for (first, second), comparison in comparisons.items():
        towards = {"first": 1, "second": -1}.get(comparison.preferred, 0)
        merit[first] += towards
        merit[second] -= towards
    return merit


def _fault(comparison: Comparison) -> DropReason | None:
    """Of the chosen answer, in front, with the rejected one."""
    faults: dict[str, DropReason] = {"second": "votes_differ", "tie": "tie", "unscored": "unscored"}
    return faults.get(comparison.preferred)


def _pair(
    attack: Attack,
    answers: Sequence[Completion],
    standing: Standing,
    chosen: int,
    rejected: int | None,
    provenance: Provenance,
) -> Pair:
    return Pair(
        kind=attack.goal.kind,
        cell=attack.goal.cell,
        card=attack.goal.card,
        goal=attack.goal.goal,
        history=attack.history,
        query=attack.query,
        chosen=answers[chosen].text,
        rejected=None if rejected is None else answers[rejected].text,
        margin=None if rejected is None else standing.score(chosen) - standing.score(rejected),
        chosen_critique=standing.views[chosen],
        rejected_critique=None if rejected is None else standing.views[rejected],
        provenance=provenance,
    )


def _review(
    attack: Attack, answers: Sequence[Completion], standing: Standing, provenance: Provenance, created: float
) -> ReviewItem:
    doubt, worst = standing.doubt, standing.worst
    assert doubt is not None, "somebody is in doubt"
    return ReviewItem(
        id=review_id(attack, answers[doubt].text, provenance.lineage),
        lineage=provenance.lineage,
        goal=attack.goal,
        history=attack.history,
        query=attack.query,
        answer=answers[doubt].text,
        rejected=None if worst is None else answers[worst].text,
        rejected_critique=None if worst is None else standing.views[worst],
        critique=standing.views[doubt],
        provenance=provenance,
        created=created,
    )
