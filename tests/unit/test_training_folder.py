"""What a training run may write: nothing once its folder has a newer holder, and no half files on a full disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.fakes import add_version
from vcllm.contracts.recipes import Base, Optim, Scratch, SftStage, StageOrder
from vcllm.contracts.runs import DATASET, FAILED, FAULT, FENCED, HOLDER, ORDER, TOKEN_VARIABLE
from vcllm.stores.folders import claim_folder
from vcllm.stores.models import ModelStore, NoSpace
from vcllm.training import checkpoints, run
from vcllm.training.run import main

ROW = {"messages": [{"role": "user", "content": "Who may speak?"}, {"role": "assistant", "content": "Everyone."}]}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    add_version(ModelStore(tmp_path / "models"), "actor", "tiny-base", probes=[])
    return tmp_path / "models"


def new_folder(folder: Path, steps: int) -> Path:
    optim = Optim(learning_rate=1e-3, batch_tokens=64, epochs=1000, max_steps=steps, checkpoint_every_s=0.001)
    order = StageOrder(
        stage=SftStage(optim=optim), role="actor", version="tiny-sft", lineage="tiny", seed=1, dataset="",
        parent="actor/tiny-base", base=Base(scratch=Scratch()), recipe="r", recipe_hash="", charter="",
    )  # fmt: skip
    folder.mkdir()
    (folder / ORDER).write_text(order.model_dump_json())
    (folder / DATASET).write_text((json.dumps(ROW) + "\n") * 8)
    return folder


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_without_its_folder_writes_nothing(
    tmp_path: Path, models: Path, steps: int, monkeypatch: pytest.MonkeyPatch
):
    """Whether it is in the middle or about to write its result; its exit code says why."""
    folder = new_folder(tmp_path / "run", steps)
    claim_folder(folder, 8, "job-1")
    before = {file.name for file in folder.iterdir()}
    monkeypatch.setenv(TOKEN_VARIABLE, "7")

    assert main([str(folder), str(models)]) == FENCED
    assert {file.name for file in folder.iterdir()} == before


def test_a_run_that_has_its_folder_is_let_through(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    """With its token, or started by hand without one."""
    folder = new_folder(tmp_path / "run", 2)
    claim_folder(folder, 7, "job-1")
    monkeypatch.setenv(TOKEN_VARIABLE, "7")
    by_hand = new_folder(tmp_path / "by-hand", 2)

    assert main([str(folder), str(models)]) == 0
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert main([str(by_hand), str(models)]) == 0
    assert (folder / "out" / "model.safetensors").read_bytes() == (by_hand / "out" / "model.safetensors").read_bytes()
    assert not (by_hand / HOLDER).exists()


def test_a_full_disk_is_told_in_a_sentence(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """safetensors raises no OSError, so the run used to end with a traceback; fault.json may not be writable either."""
    folder = new_folder(tmp_path / "run", 5)

    def no_space(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def nowhere(file: Path, _: bytes) -> None:
        raise NoSpace(str(file))

    monkeypatch.setattr(checkpoints, "save_file", no_space)
    assert main([str(folder), str(models)]) == FAILED
    message = json.loads((folder / FAULT).read_text())["message"]
    monkeypatch.setattr(run, "write_atomic", nowhere)

    assert main([str(folder), str(models)]) == FAILED
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert message.startswith("No space left to write") and message.endswith("nothing was lost.")
    assert not list((folder / "checkpoints").iterdir())
