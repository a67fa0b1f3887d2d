"""Fitting the Critic again on what people decided: when, and on which rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.unit.test_stores_reviews import item
from vcllm.alignment.refit import MAX_SHARE, due, labelled, refit_rows
from vcllm.alignment.thresholds import Labelled
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.reviews import ReviewDecision, Reviewed
from vcllm.data.shapes import normalise

TURN = ChatMessage(role="user", content="before")


def reviewed(number: int, outcome: Any = Outcome.VIOLATING, **fields: Any) -> Reviewed:
    return Reviewed(item=item(number, **fields), decision=ReviewDecision(outcome=outcome), by="k", decided=1.0)


def queries(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["messages"][0]["content"] for row in rows)


@pytest.mark.parametrize("outcome", [Outcome.CONSISTENT, Outcome.VIOLATING, Outcome.REFUSAL, Outcome.BROKEN])
def test_a_decision_is_a_row_that_the_critics_stage_takes(outcome: Outcome):
    """One question, one answer and the person's word; the intake of operators' data finds no fault with it."""
    [row] = refit_rows([reviewed(1, outcome)], 1, num_replay=100)

    assert row["label"] == outcome.value
    assert [turn["content"] for turn in row["messages"]] == ["query 1", "a fair answer"]
    assert normalise(row, "critic").row == row


def test_every_decision_counts_alike_and_more_than_a_row_of_the_critics_own():
    """Each stands there `weight` times."""
    rows = refit_rows([reviewed(number) for number in range(3)], 4, num_replay=1000)

    assert queries(rows) == {"query 0": 4, "query 1": 4, "query 2": 4}


@pytest.mark.parametrize("num", [1, 9, 19, 20, 21, 100])
def test_decisions_never_outgrow_their_share(num: int):
    """Fewer repeats first; once not even one each fits, the newest stay."""
    decisions = [reviewed(number) for number in range(num)]

    rows = refit_rows(decisions, 8, num_replay=100)

    assert len(rows) <= MAX_SHARE * 100
    assert set(queries(rows)) == {f"query {number}" for number in range(num)[-20:]}
    assert len(set(queries(rows).values())) == 1


def test_without_rows_of_its_own_the_critic_is_not_fitted_on_decisions_alone():
    """They are all of answers near its threshold."""
    assert refit_rows([reviewed(1)], num_replay=0) == []
    assert refit_rows([], num_replay=100) == []


def test_answers_within_a_conversation_are_no_rows():
    """The stage knows one question and one answer; joined turns would be another text than is judged."""
    rows = refit_rows([reviewed(1, history=[TURN]), reviewed(2)], 1, num_replay=100)

    assert queries(rows) == {"query 2": 1}


@pytest.mark.parametrize(
    ("num_decided", "mark", "refit_after", "expected"),
    [(9, 0, 10, False), (10, 0, 10, True), (19, 10, 10, False), (20, 10, 10, True), (50, 0, 0, False)],
)
def test_a_refit_is_due_after_so_many_new_decisions(num_decided: int, mark: int, refit_after: int, expected: bool):
    """Counted from those that the Critic has learned from; 0 never asks for one."""
    assert due(num_decided, mark, refit_after) is expected


def test_decisions_are_labels_for_thresholds():
    """The score as it was, good only when found consistent; also of answers within a conversation."""
    decisions = [
        reviewed(1, Outcome.CONSISTENT, history=[TURN]),
        reviewed(2, Outcome.REFUSAL, language=Language.ZH),
        reviewed(3, critique=Critique(outcome=Outcome.UNSCORED)),
    ]

    labels = [Labelled(*row) for row in labelled(decisions)]

    assert labels == [Labelled(Language.EN, 0.55, True), Labelled(Language.ZH, 0.55, False)]


def test_scores_of_another_critic_can_be_left_out():
    """Two versions do not score on one scale."""
    decisions = [reviewed(1), reviewed(2)]
    other = decisions[1].item.provenance.model_copy(update={"critic": "critic-r1"})
    decisions[1] = reviewed(2, provenance=other, critique=Critique(outcome=Outcome.CONSISTENT, score=0.7))

    assert list(labelled(decisions, "critic-r1")) == [(Language.EN, 0.7, False)]
    assert len(list(labelled(decisions))) == 2
