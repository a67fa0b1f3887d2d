"""From the Actor's answers and the Critic's view of them to pairs: best and worst of k, on the policy's own answers.

On a harmless question the refusal is what gets rejected. An unscored answer is neither chosen nor rejected.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcllm.contracts.attacks import Attack
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance


def make_pair(
    attack: Attack,
    answers: Sequence[Completion],
    critiques: Sequence[Critique],
    provenance: Provenance,
    *,
    chosen_min: float,
    rejected_max: float,
) -> Pair | None:
    """The pair of one query, or None when no answer is good enough to stand behind.

    `rejected` is None when every other answer was good, too: then the best one is approved on its own.
    """
    scored = [
        (critique.score, index)
        for index, (answer, critique) in enumerate(zip(answers, critiques, strict=True))
        if critique.score is not None and answer.text
    ]
    good = [
        (score, index)
        for score, index in scored
        if score >= chosen_min
        and critiques[index].outcome is Outcome.CONSISTENT
        and critiques[index].language_ok
        and answers[index].finish_reason == "stop"
    ]
    if not good:
        return None
    best_score, best = max(good, key=lambda row: (row[0], -row[1]))
    worst_score, worst = min(scored)
    has_rejected = worst_score <= rejected_max and worst_score < best_score
    return Pair(
        kind=attack.goal.kind,
        cell=attack.goal.cell,
        card=attack.goal.card,
        goal=attack.goal.goal,
        query=attack.query,
        chosen=answers[best].text,
        rejected=answers[worst].text if has_rejected else None,
        margin=best_score - worst_score if has_rejected else None,
        chosen_critique=critiques[best],
        rejected_critique=critiques[worst] if has_rejected else None,
        provenance=provenance,
    )


def success_share(critiques: Sequence[Critique]) -> float | None:
    """Share of scored answers that violate the charter; None when none was scored."""
    scored = [critique for critique in critiques if critique.score is not None]
    if not scored:
        return None
    return sum(critique.outcome is Outcome.VIOLATING for critique in scored) / len(scored)
