"""Wrong input ends a run before it does harm, with one sentence that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training_runs import chats, every_stage, exchanges, fault, micro_base, optim, order, train, write_job
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import CriticStage, Lora, SftStage
from vcllm.contracts.runs import FAILED
from vcllm.stores.models import ModelStore
from vcllm.training import parallel as parallel_module
from vcllm.training import stages
from vcllm.training.checkpoints import Checkpoints
from vcllm.training.loop import Run
from vcllm.training.models import open_model
from vcllm.training.parallel import Parallel
from vcllm.training.run import main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def refused(tmp_path: Path, base: Path) -> Callable[..., str]:
    """Run an order that must not succeed; its sentence."""

    def run(made: Any, rows: Any) -> str:
        folder = write_job(tmp_path / "job", made, rows)
        assert main([str(folder), str(tmp_path / "models")]) == FAILED
        assert not (folder / "out").exists()
        assert not (folder / "result.json").exists()
        sentence = fault(folder)
        assert "\n" not in sentence.strip()
        assert "Traceback" not in sentence
        return sentence

    return run


def sft(base: Any, lora: Lora | None = None, **changes: Any) -> Any:
    return order(SftStage(optim=optim(**changes)), base, lora)


def copy_of(base: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_a_base_that_is_not_there(refused: Any, tmp_path: Path) -> None:
    """Its name, and where to correct it."""
    assert re.search(r"'.*/nowhere' is neither a folder .* Correct base.model", refused(sft(tmp_path / "nowhere"), []))


def test_a_folder_that_is_no_model(refused: Any, tmp_path: Path) -> None:
    """What a folder must hold."""
    (tmp_path / "empty").mkdir()

    assert "cannot be opened as a model" in refused(sft(tmp_path / "empty"), chats(3))


def test_a_model_without_weights(refused: Any, base: Path, tmp_path: Path) -> None:
    """A download that was cut off."""
    folder = copy_of(base, tmp_path / "base")
    (folder / "model.safetensors").unlink()

    assert "cannot be opened as a model" in refused(sft(folder), chats(3))


def test_half_a_file_of_weights(refused: Any, base: Path, tmp_path: Path) -> None:
    """Another download that was cut off."""
    folder = copy_of(base, tmp_path / "base")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])

    assert "cannot be opened as a model" in refused(sft(folder), chats(3))


def test_a_base_that_could_run_code(refused: Any, base: Path, tmp_path: Path) -> None:
    """Pickles are never opened."""
    folder = copy_of(base, tmp_path / "base")
    (folder / "pytorch_model.bin").write_bytes(b"")

    assert "pytorch_model.bin" in refused(sft(folder), chats(3))


def test_a_parent_that_is_not_in_the_store(refused: Any, base: Path) -> None:
    """By its name."""
    assert "no actor version 'v0'" in refused(sft(base).model_copy(update={"parent": "actor/v0"}), chats(3))


@pytest.mark.parametrize("target", ["nothing", ["nothing"]], ids=["pattern", "list"])
def test_an_adapter_that_would_sit_nowhere(target: Any, refused: Any, base: Path) -> None:
    """The sentence lists the layers there are."""
    sentence = refused(sft(base, Lora(target_modules=target)), chats(3))

    assert "matches no layer of this model" in sentence
    assert "down_proj" in sentence


def test_an_adapter_on_the_output_layer(refused: Any, tmp_path: Path) -> None:
    """It is trained in chunks and cannot carry one."""
    untied = micro_base(tmp_path / "base", "llama3")

    assert "output layer" in refused(sft(untied, Lora(target_modules=["lm_head", "q_proj"])), chats(3))


def test_no_weight_that_moves(base: Path, tmp_path: Path) -> None:
    """All frozen: hours would be spent on nothing."""
    made = sft(base)
    opened = open_model(made, ModelStore(tmp_path / "models"), [])
    opened.model.requires_grad_(False)

    with pytest.raises(BadRequest, match="every weight is frozen"):
        stages.train_on_chats(opened, chats(3), made.stage.optim, run_in(tmp_path, Parallel()))


def run_in(folder: Path, parallel: Parallel) -> Run:
    return Run(folder, Checkpoints(folder / "checkpoints"), lambda _: None, 0, parallel)


def test_an_average_of_sharded_weights(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a step, until it is built."""
    made = sft(base, ema_decay=0.9)
    opened = open_model(made, ModelStore(tmp_path / "models"), [])
    run = run_in(tmp_path, Parallel())
    monkeypatch.setattr(Parallel, "sharded", property(lambda _: True))

    with pytest.raises(BadRequest, match="ema_decay does not work with sharded weights"):
        stages.train_on_chats(opened, chats(3), made.stage.optim, run)


@pytest.mark.parametrize(("kind", "plugin", "sentence"), [
    (DistributedType.DEEPSPEED, {}, "DeepSpeed is not supported. Use FSDP 2"),
    (DistributedType.FSDP, {"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "Set fsdp_version: 2"),
], ids=["deepspeed", "fsdp-1"])  # fmt: skip
def test_a_launch_that_would_train_wrongly(
    kind: Any, plugin: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One steps with every backward pass, the other empties the weights where the chunked loss looks for them."""
    launched = SimpleNamespace(distributed_type=kind, state=SimpleNamespace(**plugin))
    monkeypatch.setattr(parallel_module, "Accelerator", lambda **_: launched)

    with pytest.raises(BadRequest, match=sentence):
        Parallel()


def test_a_loss_that_is_no_number_names_the_rows(refused: Any, base: Path, tmp_path: Path) -> None:
    """A learning rate beyond reason; the checkpoint before it stays, with weights that are numbers."""
    rows = chats(5)
    sentence = refused(sft(base, learning_rate=1e30, checkpoint_every_s=1e-6, batch_tokens=4096), rows)
    saved = Checkpoints(tmp_path / "job" / "checkpoints").newest()

    assert "at rows 1, 2, 3, 4, 5 of the dataset" in sentence
    assert "lower the learning rate" in sentence
    assert saved is not None
    assert all(bool(torch.isfinite(value.float()).all()) for value in saved.tensors.values())


def test_weights_that_are_no_numbers_are_no_checkpoint(refused: Any, base: Path, tmp_path: Path) -> None:
    """One step can be enough, and the next step's loss would be the first to show it."""
    sentence = refused(sft(base, learning_rate=1e38, checkpoint_every_s=1e-6), chats(5))

    assert "After step 1 the weights are not numbers any more" in sentence
    assert not list((tmp_path / "job").glob("checkpoints/*"))


def test_weights_that_are_no_numbers_change_nothing(refused: Any, base: Path, tmp_path: Path) -> None:
    """A base with a broken row is noticed at the first step, before any checkpoint."""
    folder = copy_of(base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    refused(sft(folder), chats(5))

    assert not list((tmp_path / "job").glob("checkpoints/*"))


@pytest.mark.parametrize("rows", [[], [{"text": ""}]], ids=["none", "empty"])
def test_a_dataset_with_nothing_to_learn(rows: list[Any], refused: Any, base: Path) -> None:
    """How many rows there were."""
    made, _ = every_stage(base)["cpt"]

    assert f"None of the {len(rows)} rows" in refused(made, rows)


def test_answers_that_are_all_cut_before_their_end(refused: Any, base: Path) -> None:
    """The model would never learn to stop."""
    long = [{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "the river " * 40}]}]

    assert "never learn to stop. All rows are cut before it; raise max_length." in refused(
        sft(base, max_length=40), long
    )


@pytest.mark.parametrize("change", [{"label": None}, {"label": "good"}, {"messages": []}], ids=str)
def test_a_row_that_cannot_teach_a_critic(change: dict[str, Any], refused: Any, base: Path) -> None:
    """Its number and the labels there are."""
    rows = exchanges(5)
    rows[3] = {**rows[3], **change}
    sentence = refused(order(CriticStage(optim=optim()), base), rows)

    assert sentence.startswith("Row 4 cannot teach a critic")
    assert "consistent" in sentence


def test_a_critic_of_one_row(refused: Any, base: Path) -> None:
    """None would be left to train on."""
    assert "at least two rows" in refused(order(CriticStage(optim=optim()), base), exchanges(1))


def test_a_tracker_that_is_not_installed(refused: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and silently missing is worse than refused."""
    monkeypatch.setenv("VCLLM_TRACKERS", "nonesuch")

    assert "nonesuch" in refused(sft(base), chats(3))


def test_memory_of_the_device_that_runs_out(refused: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which settings need less of it."""

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(stages, "optimise", out_of_memory)

    assert "micro_tokens" in refused(sft(base), chats(3))


def test_an_error_of_ours_keeps_its_traceback(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to correct an input that is right."""
    folder = write_job(tmp_path / "job", sft(base), chats(3))

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(stages, "optimise", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main([str(folder), str(tmp_path / "models")])

    assert not (folder / "fault.json").exists()


def test_a_dataset_of_another_kind_still_says_which_row(refused: Any, base: Path) -> None:
    """A conversation nobody answers."""
    rows = [*chats(2), {"messages": [{"role": "user", "content": "Who?"}]}]

    assert "Conversation 3 has no assistant turn" in refused(sft(base), rows)


def test_a_finished_version_is_not_touched_by_a_refusal(base: Path, tmp_path: Path) -> None:
    """The folder of a run that succeeded stays as it is."""
    result = train(tmp_path / "job", sft(base, max_steps=1), chats(3))

    assert main([str(tmp_path / "job"), str(tmp_path / "models")]) == 0
    assert json.loads((tmp_path / "job" / "result.json").read_text()) == result
