"""What the Attacker learns of a round: weighted wins, and wins preferred over failures at the same goal."""

from __future__ import annotations

import pytest

from vcllm.alignment.updates import Attempt, attacker_updates


def attempt(query: str, success: float | None, novelty: float = 1.0, prompt: str = "goal", cell: str = "") -> Attempt:
    return Attempt(prompt, query, success, novelty, cell)


def written(rows) -> list[str]:
    """The queries that are taught, in order."""
    return [row["chosen"] if "chosen" in row else row["messages"][-1]["content"] for row in rows]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)]


def preferences(rows):
    return [(row["chosen"], row["rejected"]) for row in rows if "chosen" in row]


def test_a_win_is_a_chat_weighted_by_success_and_novelty():
    """A win the archive knows keeps a fifth of its weight; failures alone teach nothing."""
    rows = attacker_updates([attempt("new", 0.5), attempt("known", 1.0, 0.0, "other"), attempt("lost", 0.0, 1.0, "x")])

    assert rows == [
        {"messages": turns("goal", "new"), "weight": 0.5},
        {"messages": turns("other", "known"), "weight": 0.2},
    ]


def test_a_win_is_preferred_over_a_failure_at_the_same_goal():
    """In place of the plain win, with its weight."""
    assert attacker_updates([attempt("lost", 0.0), attempt("won", 0.5, 0.5)]) == [
        {"prompt": turns("goal"), "chosen": "won", "rejected": "lost", "weight": 0.3}
    ]


def test_the_win_of_most_success_and_novelty_is_chosen_and_the_others_stay_wins():
    """A goal gives one preference, however often it was tried."""
    rows = attacker_updates([attempt("stale", 1.0, 0.1), attempt("best", 0.5, 0.9), attempt("lost", 0.0)])

    assert preferences(rows) == [("best", "lost")]
    assert [row["messages"] for row in rows if "messages" in row] == [turns("goal", "stale")]


def test_of_wins_that_are_nothing_new_the_surest_is_chosen():
    """Without novelty, success decides."""
    rows = attacker_updates([attempt("half", 0.5, 0.0), attempt("full", 1.0, 0.0), attempt("lost", 0.0)])

    assert preferences(rows) == [("full", "lost")]


def test_a_failure_of_an_earlier_round_counts_and_the_newest_goes_first():
    """A win of an earlier round does not: its Actor was another one."""
    earlier = [attempt("first round", 0.0), attempt("second round", 0.0), attempt("old win", 1.0, 1.0, "other")]

    assert preferences(attacker_updates([attempt("won", 1.0)], earlier)) == [("won", "second round")]
    assert preferences(attacker_updates([attempt("won", 1.0), attempt("lost", 0.0)], earlier)) == [("won", "lost")]
    assert attacker_updates([attempt("lost", 0.0, 1.0, "other")], earlier) == []


@pytest.mark.parametrize(
    "other",
    [attempt("lost", None), attempt("lost", 0.25), attempt("lost", 0.0, 1.0, "other"), attempt("won", 0.0)],
    ids=["unscored", "a small win", "another goal", "the very query that now wins"],
)
def test_only_a_judged_failure_at_the_same_goal_is_rejected(other: Attempt):
    """An outage is not a failure."""
    assert preferences(attacker_updates([attempt("won", 1.0)], [other])) == []


def test_with_diversity_off_a_win_weighs_its_success_alone():
    """And the surest win is the best, however stale: what then happens is for the loop's figures to show."""
    attempts = [attempt("stale", 1.0, 0.0), attempt("fresh", 0.5, 1.0), attempt("lost", 0.0)]

    assert attacker_updates(attempts, diversity=False) == [
        {"prompt": turns("goal"), "chosen": "stale", "rejected": "lost", "weight": 1.0},
        {"messages": turns("goal", "fresh"), "weight": 0.5},
    ]
    assert preferences(attacker_updates(attempts)) == [("fresh", "lost")]


def test_a_cell_teaches_its_best_wins_only():
    """By success and novelty, in the order they stood in; other cells are not touched."""
    attempts = [
        attempt("stale", 1.0, 0.1, "p1", "a"),
        attempt("best", 1.0, 0.9, "p2", "a"),
        attempt("elsewhere", 0.25, 0.1, "p3", "b"),
        attempt("good", 0.75, 0.8, "p4", "a"),
    ]

    assert written(attacker_updates(attempts, max_per_cell=2)) == ["best", "elsewhere", "good"]
    assert written(attacker_updates(attempts, max_per_cell=1)) == ["best", "elsewhere"]
    assert written(attacker_updates(attempts, max_per_cell=1, diversity=False)) == ["stale", "elsewhere"]


def test_wins_of_no_known_cell_are_never_capped():
    """They do not share a cell by having none."""
    assert written(attacker_updates([attempt("one", 1.0), attempt("two", 1.0)], max_per_cell=1)) == ["one", "two"]


def test_a_win_beyond_its_cells_share_is_still_no_failure():
    """The same words lost another time: they must not be rejected in favour of the win that is kept."""
    attempts = [attempt("kept", 1.0, 1.0, cell="a"), attempt("capped", 0.5, 1.0, cell="a"), attempt("capped", 0.0)]

    assert attacker_updates(attempts, max_per_cell=1) == [{"messages": turns("goal", "kept"), "weight": 1.0}]
