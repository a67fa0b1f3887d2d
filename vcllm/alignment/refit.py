"""What the Critic learns from decisions of people: rows to fit it again, when that is due, and labels for thresholds.

Pure. Does not know how a Critic is trained, nor where decisions are kept. Decided answers are those of which a Critic
was not sure: they say nothing of how often it is right elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.reviews import Reviewed

Row = dict[str, Any]

WEIGHT = 8
"""Times a decision is shown for each time one of the Critic's own rows is. Ours, not tuned."""
MAX_SHARE = 0.2
"""Of the Critic's own rows: so many rows of decisions at most, so that answers near its threshold never become what it
mainly sees. Ours, not tuned."""


def due(num_decided: int, mark: int, refit_after: int) -> bool:
    """Whether to fit the Critic again. mark: decisions that it has learned from. refit_after: 0: never."""
    return refit_after > 0 and num_decided - mark >= refit_after


def refit_rows(reviewed: Sequence[Reviewed], weight: int = WEIGHT, *, num_replay: int) -> list[Row]:
    """Decisions as rows of the Critic's stage, to stand behind the `num_replay` rows of its own that it keeps seeing.

    The stage takes every row alike, so a decision counts more by standing there more than once: `weight` times, or as
    often as all of them can within `MAX_SHARE`. Where not even once each fits, the newest are taken. Behind the others,
    because the first rows are kept apart for calibration, where a row repeated in training has no place.

    A decision on an answer within a conversation is left out: the stage learns from one question and one answer, and
    turns joined into one question would be another text than the one that is judged.
    """
    assert weight >= 1, "a decision that is not to be learned from is not passed in"
    rows = [_row(one) for one in reviewed if not one.item.history]
    room = int(MAX_SHARE * num_replay)
    if len(rows) > room:
        return rows[len(rows) - room :]
    return rows * min(weight, room // len(rows)) if rows else []


def labelled(reviewed: Sequence[Reviewed], critic: str | None = None) -> Iterator[tuple[Language, float, bool]]:
    """Language, the Critic's score, and whether the answer is fit to be approved, as people found.

    critic: only what this version scored, since scores of two versions are not of one scale; None: all. Answers that
    it could not score are left out. All these scores lie in the band in which the Critic abstained: beside labels of
    answers as they come, never instead of them.
    """
    for one in reviewed:
        score, judge = one.item.critique.score, one.item.provenance.critic
        if score is not None and critic in (None, judge):
            yield one.item.goal.cell.language, score, one.decision.outcome is Outcome.CONSISTENT


def _row(one: Reviewed) -> Row:
    turns = [{"role": "user", "content": one.item.query}, {"role": "assistant", "content": one.item.answer}]
    return {"messages": turns, "label": one.decision.outcome.value}
