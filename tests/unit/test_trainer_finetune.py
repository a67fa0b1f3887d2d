"""What a fine-tuning job trains on: the uploaded file, taken in once, held against what is evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from services.trainer.finetune import evaluated, taken_in
from tests.e2e.micro import write_micro
from vcllm.contracts.fine_tuning import FineTune, Method
from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.contracts.recipes import Base, Optim, Scratch, SftStage, StageOrder
from vcllm.evaluation.bench.load import held_out_questions
from vcllm.settings import Settings
from vcllm.stores.files import FileStore

HOLD: Any = SimpleNamespace(go_on=lambda: None, confirm=lambda: None)
RECORD: Any = SimpleNamespace(id="job-1", token=1)


def chat(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Everyone."}]}


def request(settings: Settings, *questions: str, **changes: Any) -> FineTune:
    """A job on a file with these questions."""
    with FileStore(settings.home / "files").receive() as incoming:
        for question in questions:
            incoming.write(json.dumps(chat(question)).encode() + b"\n")
        file = incoming.keep("rows.jsonl", "key")
    order = StageOrder(
        stage=SftStage(optim=Optim(learning_rate=1e-3)), role="actor", version="line-ft-1-sft", lineage="line-ft-1",
        seed=3, base=Base(scratch=Scratch()), dataset="", recipe="micro", recipe_hash="", charter="c",
    )  # fmt: skip
    method = Method(type="supervised")
    return FineTune(**{"file": file.id, "model": "line-sft", "method": method, "owner": "k", "order": order} | changes)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_micro(tmp_path)
    return Settings(home=tmp_path / "var", recipes=tmp_path / "recipes", charters=tmp_path / "charters")


def test_the_rows_are_frozen_once(settings: Settings, client: Redis):
    """A job that is resumed finds its snapshot, also when the file has been deleted since."""
    wanted = request(settings, "Who may speak?", "Who may listen?", "Who may speak?")
    first = taken_in(wanted, RECORD, HOLD, client, settings)
    with FileStore(settings.home / "files").deleting(wanted.file):
        pass

    assert taken_in(wanted, RECORD, HOLD, client, settings) == first
    assert (first["sets"][0]["set"], first["sets"][0]["usable"], first["sets"][0]["duplicates"]) == (wanted.file, 2, 1)
    with pytest.raises(NotFound, match="was deleted"):
        taken_in(wanted, SimpleNamespace(id="job-2", token=1), HOLD, client, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("policy", "usable"), [("refuse", None), ("drop", 1), ("allow", 2)])
def test_a_row_that_quotes_the_evaluation_is_treated_as_the_recipe_says(
    settings: Settings, client: Redis, policy: str, usable: int | None
):
    """Refused with the line it stands in, unless the lineage's recipe says otherwise."""
    question = next(text for item, text in held_out_questions() if item.endswith("-zh"))
    wanted = request(settings, "Who may speak?", question, contamination=policy)

    if usable is None:
        with pytest.raises(BadRequest, match="line 2: quotes evaluation item") as refused:
            taken_in(wanted, RECORD, HOLD, client, settings)
        assert refused.value.code == "data_invalid"
    else:
        assert taken_in(wanted, RECORD, HOLD, client, settings)["sets"][0]["usable"] == usable


def test_the_questions_of_the_recipe_are_among_what_is_evaluated(settings: Settings):
    """Without the recipe, which may be gone, there is the bench alone."""
    with_recipe, without = (dict(evaluated(name, settings)) for name in ("micro", "gone"))

    assert without == dict(held_out_questions())
    assert with_recipe.items() > without.items()
