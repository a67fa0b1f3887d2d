"""What the Attacker learns of a round: its wins, and where the same prompt also failed, the win over the failure.

Novel wins weigh more. A failure may be of an earlier round, whose Actor was no harder to mislead; a win must be of
this one, against the Actor as it is now. Does not know who judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

KNOWN_WIN = 0.2
"""Weight of a win that is in the archive already, as a share of a novel one's."""


@dataclass(frozen=True)
class Attempt:
    """One query that the Attacker wrote and the Actor answered."""

    prompt: str
    """What the Attacker was asked."""
    query: str
    success: float | None
    """Share of the judged answers that violate the charter; None when none could be judged."""
    novelty: float
    """Of the archive, in [0, 1]."""

    @property
    def weight(self) -> float:
        return round((self.success or 0.0) * (KNOWN_WIN + (1 - KNOWN_WIN) * self.novelty), 4)


def attacker_updates(attempts: Sequence[Attempt], earlier: Iterable[Attempt] = ()) -> list[dict[str, Any]]:
    """A round's wins as weighted chats; the best win of a prompt that failed, too, as a weighted preference.

    attempts: of the round; earlier: of rounds before it, oldest first. The newest round's failure is the rejected one.
    """
    wins = [attempt for attempt in attempts if attempt.success]
    best: dict[str, Attempt] = {}
    for win in wins:
        best[win.prompt] = max(best.get(win.prompt, win), win, key=_merit)
    won = {(win.prompt, win.query) for win in wins}
    failed = {
        attempt.prompt: attempt.query
        for attempt in [*earlier, *reversed(attempts)]
        if attempt.success == 0 and (attempt.prompt, attempt.query) not in won
    }
    return [
        _preference(win, failed[win.prompt]) if win.prompt in failed and win is best[win.prompt] else _chat(win)
        for win in wins
    ]


def _merit(win: Attempt) -> tuple[float, float]:
    assert win.success is not None, "a win was judged"
    return win.success * win.novelty, win.success


def _chat(win: Attempt) -> dict[str, Any]:
    turns = [{"role": "user", "content": win.prompt}, {"role": "assistant", "content": win.query}]
    return {"messages": turns, "weight": win.weight}


def _preference(win: Attempt, failure: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": win.prompt}]
    return {"prompt": prompt, "chosen": win.query, "rejected": failure, "weight": win.weight}
