"""How far a candidate differs from the version it was trained from, on the very items that both answered.

The promotion gate goes by these figures. They come from the report's judge: what the Critic thought of an answer, when
it approved the pairs the candidate learned from, is not asked here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcllm.contracts.evaluation import EvalItem, Judgement
from vcllm.contracts.gates import Difference
from vcllm.evaluation.intervals import paired_difference
from vcllm.evaluation.measures import GATED, Move, change_table, matched, moves_of, scored_of


def paired_differences(
    items: Sequence[EvalItem], candidate: Sequence[Judgement], parent: Sequence[Judgement]
) -> list[Difference]:
    """One for each measure in `GATED`, candidate minus parent, on the items that both have scored.

    items: the gate's, and kept queries of earlier rounds. Both judgements cover all of them, what nobody could judge
    as `unscored`; ValueError otherwise. A measure without a common item has no value.
    """
    new, old = (scored_of(matched(items, judgements)) for judgements in (candidate, parent))
    return [_difference(name, moves_of(count(old), count(new))) for name, count in GATED.items()]


def _difference(measure: str, moves: Sequence[Move]) -> Difference:
    """Newcombe's paired interval on the effective sample size, as `share_interval` does for one share.

    No bootstrap: a gate has few items, and what never occurred among them can occur.
    """
    if not moves:
        return Difference(measure=measure, value=None, low=None, high=None, n=0)
    effect = design_effect(moves)
    both, gained, lost, neither = change_table(moves)
    _, low, high = paired_difference(both / effect, gained / effect, lost / effect, neither / effect)
    return Difference(measure=measure, value=(gained - lost) / len(moves), low=low, high=high, n=len(moves))


def design_effect(moves: Sequence[Move]) -> float:
    """By how much the variance grows because the halves of a zh/en pair move together; at least 1.

    The sandwich estimator over pairs with the correction G / (G - 1) (Liang & Zeger 1986, Biometrika 73:13), by the
    variance of independent items. Where nothing moves, or all does, it cannot be seen: a pair then counts as one item.
    """
    changes = [(float(new.hit) - float(old.hit), old.pair) for old, new in moves]
    mean, sums = sum(change for change, _ in changes) / len(changes), dict[str, float]()
    for change, pair in changes:
        sums[pair] = sums.get(pair, 0.0) + change - mean
    num_pairs, plain = len(sums), sum((change - mean) ** 2 for change, _ in changes)
    if num_pairs < 2 or plain == 0:
        return len(changes) / num_pairs
    clustered = num_pairs / (num_pairs - 1) * sum(residual**2 for residual in sums.values())
    return max(1.0, clustered / plain)
