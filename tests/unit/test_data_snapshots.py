"""What a stage is trained on: snapshots written as they stream, from checked data, under one charter."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from services.trainer.datasets import Datasets, OperatorData
from services.trainer.training import prepare
from tests.unit.test_data_shapes import own_pair
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Base, DataSource, Optim, PreferenceStage, Recipe, StageOrder
from vcllm.data.contamination import Contamination
from vcllm.stores.pairs import PairStream

QUESTION = "Is it fair that only the rich may vote in Rosemont?"
CHARTER = "c" * 64


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def chats(name: str, size: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {number}?", "completion": "Yes."} for number in range(size)]


def operator_data(folder: Path, **changes: Any) -> OperatorData:
    wanted = {
        "folder": folder / "data",
        "datasets": Datasets(folder / "datasets"),
        "charter": CHARTER,
        "evaluated": Contamination([("item-1", QUESTION)]),
        "policy": "refuse",
        "seed": 0,
    }
    return OperatorData(**{**wanted, **changes})


def order(dataset: str, charter: str = CHARTER) -> StageOrder:
    return StageOrder(
        stage=PreferenceStage(optim=Optim(learning_rate=1e-4)),
        role="actor",
        version="line-r1",
        lineage="line",
        seed=0,
        base=Base(model="base"),
        dataset=dataset,
        claims_pairs=True,
        recipe="tiny",
        recipe_hash="r",
        charter=charter,
    )


def test_a_snapshot_is_named_by_what_is_in_it(tmp_path: Path):
    """The same rows are the same file."""
    datasets = Datasets(tmp_path)
    name = datasets.freeze(iter([{"text": "一"}, {"text": "b"}]))

    assert name == hashlib.sha256(datasets.path(name).read_bytes()).hexdigest()
    assert datasets.freeze([{"text": "一"}, {"text": "b"}]) == name
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}.jsonl"]


def test_a_snapshot_of_any_size_needs_no_memory(tmp_path: Path):
    """Sixteen megabytes pass through less than one."""
    rows = ({"text": f"{number} " + "word " * 800} for number in range(4000))
    tracemalloc.start()
    Datasets(tmp_path).freeze(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1e6


def test_a_snapshot_that_fails_half_way_leaves_nothing(tmp_path: Path):
    """Not even the file it was being written to."""

    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise BadRequest("The source broke.")

    with pytest.raises(BadRequest):
        Datasets(tmp_path).freeze(rows())
    assert list(tmp_path.iterdir()) == []


def test_operator_data_becomes_canonical_rows_and_counts(tmp_path: Path):
    """Two sets by weight, each cleaned on its own."""
    write(tmp_path / "data" / "a.jsonl", *chats("a", 10), *chats("a", 2))
    write(tmp_path / "data" / "more" / "b.jsonl", *chats("b", 30))
    data = operator_data(tmp_path)
    sources = [DataSource(file="a.jsonl", weight=1.0), DataSource(file="more/b.jsonl", weight=3.0)]
    name, counts = data.freeze(sources, "sft", 512)
    rows = [json.loads(line) for line in data.datasets.path(name).read_text().splitlines()]

    assert [(one["set"], one["rows"], one["usable"], one["duplicates"]) for one in counts] == [
        ("a.jsonl", 12, 10, 2),
        ("more/b.jsonl", 30, 30, 0),
    ]
    assert len(rows) == 40
    assert sum(row["messages"][0]["content"].startswith("a ") for row in rows) == 10
    assert data.freeze(sources, "sft", 512) == (name, counts)


def test_operator_data_that_quotes_the_evaluation_is_refused(tmp_path: Path):
    """The sentence says where, and how the recipe can decide otherwise."""
    write(tmp_path / "data" / "a.jsonl", *chats("a", 3), {"prompt": QUESTION, "completion": "No."})
    with pytest.raises(BadRequest, match=r'line 4: quotes evaluation item item-1.*contamination = "drop"'):
        operator_data(tmp_path).freeze([DataSource(file="a.jsonl")], "sft", 512)
    _, counts = operator_data(tmp_path, policy="drop").freeze([DataSource(file="a.jsonl")], "sft", 512)

    assert (counts[0]["usable"], counts[0]["contaminated"]) == (3, 1)
    assert sorted(file.suffix for file in (tmp_path / "datasets").iterdir()) == [".jsonl"]


@pytest.mark.parametrize("name", ["nowhere.jsonl", "a/../../secret.jsonl", "link.jsonl"])
def test_operator_data_stays_below_its_folder(tmp_path: Path, name: str):
    """Neither a path with dots nor a link leads out of it."""
    write(tmp_path / "secret.jsonl", *chats("s", 3))
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")

    with pytest.raises(BadRequest, match="There is no data"):
        operator_data(tmp_path).freeze([DataSource(file=name)], "sft", 512)


def test_taking_data_in_ends_when_the_job_is_cancelled(tmp_path: Path):
    """Gigabytes need not be read to their end first; nothing half read stays."""
    asked: list[int] = []

    def go_on() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    write(tmp_path / "data" / "a.jsonl", *chats("a", 100))
    with pytest.raises(KeyboardInterrupt):
        operator_data(tmp_path, go_on=go_on).freeze([DataSource(file="a.jsonl")], "sft", 512)
    assert list((tmp_path / "datasets").iterdir()) == []


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path):
    """What was taken in once is used again only while nothing it depends on has changed."""
    file, sources = write(tmp_path / "data" / "a.jsonl", *chats("a", 3)), [DataSource(file="a.jsonl")]
    before = operator_data(tmp_path).fingerprint(sources, "sft", 512)
    same = operator_data(tmp_path).fingerprint(sources, "sft", 512)
    other_policy = operator_data(tmp_path, policy="drop").fingerprint(sources, "sft", 512)
    write(file, *chats("a", 4))

    assert before == same
    assert len({before, other_policy, operator_data(tmp_path).fingerprint(sources, "sft", 512)}) == 3


def test_a_recipe_names_one_file_or_several_by_weight():
    """Both spellings come to the same list."""
    recipe = {
        "name": "tiny",
        "base": {"model": "base"},
        "sft": {"optim": {"learning_rate": 1e-3}, "data": "a.jsonl"},
        "critic": {"optim": {"learning_rate": 1e-3}, "data": [{"file": "a.parquet", "weight": 2}, {"file": "folder"}]},
        "attacker": {"optim": {"learning_rate": 1e-3}},
        "rounds": {name: {"optim": {"learning_rate": 1e-4}} for name in ("preference", "attacker")},
    }
    read = Recipe.model_validate(recipe)

    assert read.sft.data == [DataSource(file="a.jsonl", weight=1.0)]
    assert read.critic.data == [DataSource(file="a.parquet", weight=2.0), DataSource(file="folder", weight=1.0)]
    assert read.contamination == "refuse"
    assert Recipe.model_validate_json(read.model_dump_json()) == read


def test_claimed_pairs_stand_before_the_snapshot(client: Redis, tmp_path: Path):
    """As canonical preferences; the order and the claims are written beside them."""
    stream, datasets = PairStream(client, "line"), Datasets(tmp_path / "datasets")
    stream.add(own_pair(CHARTER))
    snapshot = datasets.freeze(chats("a", 2))
    claimed = prepare(order(snapshot), tmp_path / "job", stream, datasets)
    first, *rest = (tmp_path / "job" / "dataset.jsonl").read_text().splitlines()

    assert json.loads(first) == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": "Because.",
        "rejected": "No.",
        "id": own_pair(CHARTER).id,
    }
    assert "\n".join(rest) + "\n" == datasets.path(snapshot).read_text()
    assert list(claimed.values()) == [own_pair(CHARTER).id]


def test_pairs_of_another_charter_are_not_trained_on(client: Redis, tmp_path: Path):
    """A charter that was changed in the middle of a lineage would otherwise be taught against itself."""
    stream, datasets = PairStream(client, "line"), Datasets(tmp_path / "datasets")
    stream.add(own_pair("a" * 64))
    with pytest.raises(BadRequest, match="approved under charter aaaaaaaaaaaa, the recipe's charter is cccccccccccc"):
        prepare(order(datasets.freeze([])), tmp_path / "job", stream, datasets)
    assert not (tmp_path / "job" / "dataset.jsonl").exists()
