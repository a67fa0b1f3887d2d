"""The operator's own preferences: told apart into pairs and rows, and spread over the rounds."""

from __future__ import annotations

import json

import pytest

from services.trainer.datasets import Datasets, OperatorData
from services.trainer.imported import ImportedPreferences, room
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import DataSource, Optim, PreferenceStage
from vcllm.data.contamination import Contamination

CHARTER = "c" * 64


def pair(number, charter=CHARTER):
    origin = dict.fromkeys(("attacker", "actor", "critic", "template", "lineage", "trace"), "x")
    return Pair(
        kind="attack",
        cell=Cell(subdomain="pol.rights", tactic="direct", language=Language.EN),
        card="pol.rights-vote",
        goal=0,
        query=f"Why {number}?",
        chosen="Because.",
        rejected="No.",
        chosen_critique=Critique(outcome=Outcome.CONSISTENT, score=0.9),
        provenance=Provenance(**origin, charter=charter, round=1),
    )


def row(number):
    return {"prompt": f"How {number}?", "chosen": "So.", "rejected": "Not so."}


@pytest.fixture
def taken_in(tmp_path):
    """Writes rows to the operator's file and takes them in, as the pipeline does."""

    def take(*rows):
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        evaluated = Contamination([("item-1", "What stands in the evaluation of this run?")])
        data = OperatorData(tmp_path, Datasets(tmp_path / "snapshots"), CHARTER, evaluated, "drop", seed=0)
        sources = [DataSource(file="p.jsonl")]
        dataset, _ = data.freeze(sources, "preference", 512)
        return ImportedPreferences(data, sources, dataset)

    return take


def dumped(*pairs):
    return [one.model_dump(mode="json") for one in pairs]


def test_a_preference_stage_may_name_the_operators_data():
    """A file, or several with weights, as other stages do."""
    stage = PreferenceStage(optim=Optim(learning_rate=1e-4), data="mine.jsonl")

    assert stage.data == [DataSource(file="mine.jsonl")]


def test_approved_pairs_stay_pairs_and_say_that_they_were_imported(taken_in):
    """With cell and provenance as they were; what has no cell is a row."""
    found = taken_in(*dumped(pair(1)), row(2))

    assert found.pairs_of(1, 1) == [pair(1).model_copy(update={"source": "imported"})]
    assert [one["prompt"][0]["content"] for one in found.rows_of(1, 1)] == ["How 2?"]


def test_a_pair_with_a_weight_stays_a_row(taken_in):
    """Pairs are learned alike; to make it one would lose the weight without a word."""
    found = taken_in({**pair(1).model_dump(mode="json"), "weight": 2.0})

    assert found.pairs_of(1, 1) == []
    assert [one["weight"] for one in found.rows_of(1, 1)] == [2.0]


def test_the_rounds_share_all_of_it_and_none_comes_twice(taken_in):
    """Whatever their number."""
    found = taken_in(*dumped(*map(pair, range(7))), *map(row, range(8)))

    for count in (1, 2, 3):
        pairs = [one.id for number in range(1, count + 1) for one in found.pairs_of(number, count)]
        rows = [json.dumps(one) for number in range(1, count + 1) for one in found.rows_of(number, count)]

        assert (len(pairs), len(set(pairs))) == (7, 7)
        assert (len(rows), len(set(rows))) == (8, 8)


@pytest.mark.parametrize("most", [0, 1, 3, 99])
def test_a_round_takes_at_most_so_many_rows(taken_in, most):
    """The first ones of its share."""
    found = taken_in(*map(row, range(9)))

    assert list(found.rows_of(2, 2, most)) == list(found.rows_of(2, 2))[:most]


def test_what_was_not_taken_in_does_not_come_back_as_a_pair(taken_in):
    """A pair that quotes the evaluation was left out, and its file is read once more."""
    leak = pair(1).model_copy(update={"query": "What stands in the evaluation of this run?"})

    assert [one.query for one in taken_in(*dumped(leak, pair(2))).pairs_of(1, 1)] == ["Why 2?"]


def test_pairs_of_another_charter_are_refused(taken_in):
    """As in the data of every other stage."""
    with pytest.raises(BadRequest, match="approved under charter"):
        taken_in(*dumped(pair(1, charter="d" * 64)))


@pytest.mark.parametrize(
    ("num", "share", "most"), [(80, 0.2, 20), (79, 0.2, 19), (71, 0.29, 29), (5, 0.0, 0), (0, 0.5, 0)]
)
def test_room_keeps_imported_ones_to_their_share_of_all(num, share, most):
    """20 beside 80 are a fifth; one more would be too many."""
    assert room(num, share) == most


def test_a_share_of_one_is_no_bound():
    """Nothing but imported ones is allowed then."""
    assert room(3, 1.0) is None
