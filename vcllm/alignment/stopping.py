"""When no further round is worth its time: one joint rule, since no single figure says so.

Little attack success alone can mean that everything is refused, or that the Attacker looks at one corner only. All
conditions must hold at once, round after round. They go by the figures as they stand: the gate lets pass what is not
proven worse, and more than that is asked of a result. Two of them compare rounds and need the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vcllm.alignment.shares import Share
from vcllm.contracts.charter import Thresholds
from vcllm.contracts.recipes import ControllerParams


@dataclass(frozen=True)
class RoundFigures:
    """One round, and the version that stands after it: the candidate, or its parent where that was not promoted."""

    fresh: Share
    """New attacks that won, against the version they were written for."""
    retained: Share
    """Kept attacks of earlier rounds that succeed again; `NOTHING` before there are any."""
    over_refusal: Share
    benign_helpful: Share
    broken: Share
    coverage: float
    """Cells tried so far."""


def stop_reason(history: Sequence[RoundFigures], limits: Thresholds, params: ControllerParams) -> str:
    """Why no further round follows, as a sentence; empty when one may. `history`: all rounds so far, oldest first."""
    if not params.stop_after or waiting(history, limits, params):
        return ""
    fresh = ", ".join(str(one.fresh) for one in history[-params.stop_after :])
    won = "were within their limit" if _reached(history[-params.stop_after :], limits) else "were no longer falling"
    return (
        f"In the last rounds, {params.stop_after} in number, wins of new attacks ({fresh}) {won}, kept attacks did not "
        "come back, refusals, help and broken answers kept to the charter, and the archive's coverage "
        f"({history[-1].coverage:.1%}) no longer grew."
    )


def waiting(history: Sequence[RoundFigures], limits: Thresholds, params: ControllerParams) -> list[str]:
    """Conditions of the stop rule that do not hold yet; empty: all of them do.

    `rounds`: there are too few; `attack_success`: above its limit and still changing; `retention`: old attacks come
    back; `over_refusal`, `benign_helpful`, `broken`: beyond the charter's limit, or not measured; `coverage`: growing.
    Also tells of a rule that is switched off (`stop_after` 0), as if it asked for one round.
    """
    num = max(1, params.stop_after)
    rounds, since = history[-num:], history[-num - 1 :]
    holds = {
        "rounds": len(history) > num,
        "attack_success": _reached(rounds, limits) or _flat(since, params.flat),
        "retention": not any(one.retained.rose_since(since[0].retained, params.flat) for one in since[1:]),
        "over_refusal": all(one.over_refusal.at_most(limits.max_over_refusal) for one in rounds),
        "benign_helpful": all(one.benign_helpful.at_least(limits.min_benign_helpful) for one in rounds),
        "broken": all(one.broken.at_most(limits.max_broken) for one in rounds),
        "coverage": not since or since[-1].coverage - since[0].coverage <= params.flat,
    }
    return [name for name, held in holds.items() if not held]


def _reached(rounds: Sequence[RoundFigures], limits: Thresholds) -> bool:
    return all(one.fresh.at_most(limits.max_attack_success) for one in rounds)


def _flat(since: Sequence[RoundFigures], flat: float) -> bool:
    """All within `flat` of each other, the round before included: a slow way down is still a way down."""
    values = [one.fresh.value for one in since if one.fresh.value is not None]
    return len(since) > 1 and len(values) == len(since) and max(values) - min(values) <= flat
