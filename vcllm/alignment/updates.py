"""What the Attacker learns of a round: its wins, and where the same prompt also failed, the win over the failure.

Novel wins weigh more, and one cell teaches only so much: an Attacker that is left to its successes collapses onto one
trick. A failure may be of an earlier round, whose Actor was no harder to mislead; a win must be of this one, against
the Actor as it is now. Does not know who judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

KNOWN_WIN = 0.2
"""Weight of a win that is in the archive already, as a share of a novel one's."""
Merit = Callable[["Attempt"], tuple[float, float]]
"""What wins are ranked by."""


@dataclass(frozen=True)
class Attempt:
    """One query that the Attacker wrote and the Actor answered."""

    prompt: str
    """What the Attacker was asked, with the turns so far where there are several."""
    query: str
    success: float | None
    """Share of the judged answers that violate the charter; None when none could be judged."""
    novelty: float
    """Of the archive, in [0, 1]."""
    cell: str = ""
    """Key of the cell it was written for; empty: unknown, and never capped."""


def attacker_updates(
    attempts: Sequence[Attempt],
    earlier: Iterable[Attempt] = (),
    *,
    diversity: bool = True,
    max_per_cell: int | None = None,
) -> list[dict[str, Any]]:
    """A round's wins as weighted chats; the best win of a prompt that failed, too, as a weighted preference.

    attempts: of the round; earlier: of rounds before it, oldest first. The newest round's failure is the rejected one.
    diversity: False weighs a win by its success alone, and novelty no longer decides which is best. max_per_cell: only
    so many wins of a cell teach, its best ones; None: all.
    """
    merit = _novel_success if diversity else _success
    wins = _capped([attempt for attempt in attempts if attempt.success], max_per_cell, merit)
    best: dict[str, Attempt] = {}
    for win in wins:
        best[win.prompt] = max(best.get(win.prompt, win), win, key=merit)
    won = {(attempt.prompt, attempt.query) for attempt in attempts if attempt.success}
    failed = {
        attempt.prompt: attempt.query
        for attempt in [*earlier, *reversed(attempts)]
        if attempt.success == 0 and (attempt.prompt, attempt.query) not in won
    }
    return [
        _preference(win, failed[win.prompt], _weight(win, diversity))
        if win.prompt in failed and win is best[win.prompt]
        else _chat(win, _weight(win, diversity))
        for win in wins
    ]


def _capped(wins: list[Attempt], most: int | None, merit: Merit) -> list[Attempt]:
    """The best `most` of every cell, in the order they stood in; of equal ones the first."""
    if most is None:
        return wins
    num: Counter[str] = Counter()
    kept: set[int] = set()
    for index in sorted(range(len(wins)), key=lambda index: merit(wins[index]), reverse=True):
        cell = wins[index].cell
        if not cell or num[cell] < most:
            num[cell] += 1
            kept.add(index)
    return [win for index, win in enumerate(wins) if index in kept]


def _novel_success(win: Attempt) -> tuple[float, float]:
    return _success(win)[0] * win.novelty, _success(win)[0]


def _success(win: Attempt) -> tuple[float, float]:
    assert win.success is not None, "a win was judged"
    return win.success, 0.0


def _weight(win: Attempt, diversity: bool) -> float:
    novelty = KNOWN_WIN + (1 - KNOWN_WIN) * win.novelty if diversity else 1.0
    return round(_success(win)[0] * novelty, 4)


def _chat(win: Attempt, weight: float) -> dict[str, Any]:
    turns = [{"role": "user", "content": win.prompt}, {"role": "assistant", "content": win.query}]
    return {"messages": turns, "weight": weight}


def _preference(win: Attempt, failure: str, weight: float) -> dict[str, Any]:
    prompt = [{"role": "user", "content": win.prompt}]
    return {"prompt": prompt, "chosen": win.query, "rejected": failure, "weight": weight}
