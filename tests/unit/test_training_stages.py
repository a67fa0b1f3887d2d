"""What each kind of stage learns, publishes and says of itself."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.training_rows import CPU, assert_same, grads, pair, whole
from tests.training_rows import corpus_of as corpus_of
from tests.training_rows import model as rows_model
from tests.training_runs import (
    LABELS,
    LORA,
    Attempts,
    chats,
    every_stage,
    exchanges,
    micro_base,
    optim,
    order,
    preferences,
    run_here,
    train,
    write_job,
)
from vcllm.contracts.recipes import AttackerStage, CriticStage, ImportStage, PreferenceStage, SftStage
from vcllm.stores.models import ModelStore
from vcllm.training import stages
from vcllm.training.batches import make_batch
from vcllm.training.body import choose_body
from vcllm.training.checkpoints import Checkpoints
from vcllm.training.critic import class_balance, fit_temperature
from vcllm.training.learner import AnswerLearner, AnswerLoss, Totals
from vcllm.training.loop import Run
from vcllm.training.models import open_model
from vcllm.training.parallel import Parallel
from vcllm.training.references import reference_logprobs, weights_hash
from vcllm.training.run import main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "out").glob("*model.safetensors")
    return load_file(file)


def figures(folder: Path) -> list[dict[str, float]]:
    """Of every step, but for how long it took."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in step.items() if name != "seconds"} for step in steps]


@pytest.mark.parametrize("name", ["pretrain", "sft", "preference", "preference-lora", "critic", "attacker"])
def test_accumulated_micro_batches_are_one_batch(name: str, base: Path, tmp_path: Path) -> None:
    """However little memory there is: the same weights and figures after six steps, but for the order of sums."""
    folders = tmp_path / "whole", tmp_path / "parts"
    for folder, micro_tokens in zip(folders, (None, 32), strict=True):
        how = {"max_steps": 6, "micro_tokens": micro_tokens, "learning_rate": 1e-3}
        made, rows = every_stage(base, **how)[name]
        still = made.lora and made.lora.model_copy(update={"dropout": 0.0})
        train(folder, made.model_copy(update={"lora": still}), rows)

    for one, other in zip(*map(figures, folders), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    expected = weights(folders[0])
    for key, value in weights(folders[1]).items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)


def test_the_gradients_of_micro_batches_add_up(tmp_path: Path) -> None:
    """Of every weight, pairs and singles mixed, to the rounding of float32."""
    chance = random.Random(0)
    rows = [pair(chance, 4 + number, 3, 5, 0.5 + number) for number in range(5)]
    model, corpus = rows_model("gqa"), corpus_of(tmp_path, rows)
    learner = AnswerLearner(model, choose_body(model, corpus), AnswerLoss(pair_weight=0.5))
    learner(whole(corpus), Totals(30.0, 5.0)).backward()
    expected = grads(model)

    for part in ([3], [0, 4], [1, 2]):
        learner(make_batch(corpus, np.array(part), CPU), Totals(30.0, 5.0)).backward()

    assert_same(grads(model), expected, rtol=1e-5)


def test_a_row_of_weight_zero_teaches_nothing(base: Path, tmp_path: Path) -> None:
    """Weights scale what a row contributes: the Attacker's wins rely on it."""
    rows = [{**row, "weight": 1.0} for row in chats(6, 1)]
    silent = [{**row, "weight": 0.0} for row in chats(6, 2)]
    made = order(SftStage(optim=optim(batch_tokens=100_000, max_steps=3)), base)
    train(tmp_path / "with", made, rows + silent)
    train(tmp_path / "without", made, rows)

    expected = weights(tmp_path / "without")
    for key, value in weights(tmp_path / "with").items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_preference_training_widens_the_gap_between_chosen_and_rejected(kind: Any, base: Path, tmp_path: Path) -> None:
    """It starts where the reference is, and in the end prefers what the Critic preferred."""
    stage = PreferenceStage(optim=optim(max_steps=30, epochs=30, batch_tokens=4096, learning_rate=1e-2), loss=kind)
    result = train(tmp_path / "job", order(stage, base), preferences(20) + chats(5))
    first, *_, last = figures(tmp_path / "job")

    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["margin"] > first["margin"] + 0.1
    assert last["preferred"] > 0.9
    assert (result["metrics"]["pairs"], result["metrics"]["singles"]) == (13, 12)


def test_the_attacker_learns_wins_and_that_they_beat_failures(base: Path, tmp_path: Path) -> None:
    """Supervised on wins, with a preference where the same goal also failed."""
    stage = AttackerStage(optim=optim(max_steps=30, epochs=30, batch_tokens=4096, learning_rate=1e-2))
    result = train(tmp_path / "job", order(stage, base), preferences(15) + chats(4))
    first, *_, last = figures(tmp_path / "job")

    assert last["nll"] < first["nll"] - 1
    assert last["margin"] > 0.1
    assert (result["metrics"]["pairs"], result["metrics"]["singles"]) == (10, 9)


def test_references_are_computed_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run from the same reference reads them, and makes the same weights."""
    made, rows = every_stage(base, max_steps=4)["preference"]
    train(tmp_path / "first", made, rows)
    monkeypatch.setattr(AnswerLearner, "logprobs", lambda *_: pytest.fail("computed again"))

    train(tmp_path / "second", made, rows)

    assert weights(tmp_path / "second").keys() == weights(tmp_path / "first").keys()
    expected = weights(tmp_path / "first")
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / "second").items())


def test_damaged_references_are_computed_again(base: Path, tmp_path: Path) -> None:
    """A cache is never worth a run."""
    made, rows = every_stage(base, max_steps=4)["preference"]
    train(tmp_path / "first", made, rows)
    (kept,) = (tmp_path / "models" / ".references").iterdir()
    whole_file = kept.read_bytes()
    kept.write_bytes(whole_file[: len(whole_file) // 2])

    train(tmp_path / "second", made, rows)

    assert kept.read_bytes() == whole_file
    expected = weights(tmp_path / "first")
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / "second").items())


def test_a_run_keeps_to_the_references_it_began_with(tmp_path: Path) -> None:
    """Another run may compute the same pair beside other rows and differ in the last bit: resuming must not."""
    rows = [pair(random.Random(seed), 5, 4, 3) for seed in range(3)]
    model, corpus, parallel = rows_model("gqa"), corpus_of(tmp_path, rows), Parallel()
    learner = AnswerLearner(model, choose_body(model, corpus), AnswerLoss(pair_weight=0.5))
    where = tmp_path / "own", tmp_path / "shared", weights_hash(model)
    first = reference_logprobs(learner, corpus, *where, parallel)
    (own,), (shared,) = (list(folder.iterdir()) for folder in where[:2])
    tensors = load_file(shared)
    save_file({**tensors, "logprobs": tensors["logprobs"] + 1}, shared)

    assert reference_logprobs(learner, corpus, *where, parallel) == first
    own.unlink()
    assert reference_logprobs(learner, corpus, *where, parallel) != first


def test_the_reference_is_known_by_its_weights() -> None:
    """Any weight that moves makes another; the same weights make the same."""
    one, other = rows_model("gqa"), rows_model("gqa")
    before = weights_hash(other)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3

    assert weights_hash(one) == before != weights_hash(other)


def test_a_published_average_is_the_one_computed_by_hand(base: Path, tmp_path: Path) -> None:
    """From the weights of every step's checkpoint."""
    decay, steps = 0.6, 5
    how = optim(max_steps=steps, ema_decay=decay, publish="average", checkpoint_every_s=1e-9)
    made = order(SftStage(optim=how), base)
    opened = open_model(made, ModelStore(tmp_path / "models"), [])
    name = "model.model.layers.0.mlp.up_proj.weight"
    average = opened.model.get_parameter(name.removeprefix("model.")).detach().clone()
    kept = Checkpoints(tmp_path / "checkpoints", keep=99)
    run = Run(tmp_path, kept, lambda _: None, 0, Parallel())
    stages.train_on_chats(opened, chats(20), how, run)

    for step in range(1, steps + 1):
        weight = load_file(tmp_path / "checkpoints" / f"step-0000000{step}" / "tensors.safetensors")[f"weight.{name}"]
        average = decay * average + (1 - decay) * weight
    published = opened.model.get_parameter(name.removeprefix("model.")).detach()
    torch.testing.assert_close(published, average, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(published, weight, rtol=1e-3, atol=1e-5)


def test_the_critic_learns_its_classes_and_says_how_well(base: Path, tmp_path: Path) -> None:
    """One class per outcome, a fitted temperature, and one for each language with rows enough."""
    made = order(CriticStage(optim=optim(max_steps=3, batch_tokens=2048)), base)
    many = train(tmp_path / "many", made, exchanges(1900))
    few = train(tmp_path / "few", made, exchanges(100))
    config = json.loads((tmp_path / "many" / "out" / "config.json").read_text())

    assert list(config["id2label"].values()) == list(LABELS)
    assert config["critic_temperature"] == many["metrics"]["temperature"] > 0
    assert config["critic_temperatures"] == many["metrics"]["temperatures"]
    assert set(config["critic_temperatures"]) == {"zh", "en"}
    assert few["metrics"]["temperatures"] == {}
    assert 0 <= many["metrics"]["held_out_accuracy"] <= 1
    assert many["probes"] == []


def test_classes_weigh_the_same_however_many_rows_they_have() -> None:
    """The sums of weights over the rows of each class that occurs are equal."""
    labels = np.array([0] * 70 + [1] * 20 + [3] * 10, np.int16)

    balance_C = class_balance(labels).numpy()

    sums = [balance_C[label] * (labels == label).sum() for label in (0, 1, 3)]
    assert sums == pytest.approx([sums[0]] * 3)


def test_a_temperature_undoes_overconfidence() -> None:
    """Logits three times too large are divided by about three."""
    torch.manual_seed(0)
    logits_BC = torch.randn(4000, 4)
    labels_B = torch.multinomial(logits_BC.softmax(-1), 1)[:, 0]

    assert fit_temperature(3 * logits_BC, labels_B) == pytest.approx(3, rel=0.1)


def test_gradient_checkpointing_trains_the_same_weights(base: Path, tmp_path: Path) -> None:
    """Through a whole run, dropout of an adapter included."""
    for name, wanted in (("with", True), ("without", False)):
        how = optim(max_steps=4, gradient_checkpointing=wanted)
        train(tmp_path / name, order(SftStage(optim=how), base, LORA), chats(20))

    expected = weights(tmp_path / "without")
    for key, value in weights(tmp_path / "with").items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)


def test_the_first_example_is_shown_with_what_is_learned_marked(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training on request, and beside every run; the prompt is not learned, the answer and its end are."""
    made, rows = every_stage(base, max_steps=1)["sft"]
    folder = write_job(tmp_path / "job", made, rows)

    assert main(["--show", str(folder), str(tmp_path / "models")]) == 0
    shown = capsys.readouterr().out.strip()
    assert not (folder / "encoded").exists()
    run_here(folder)

    question, answer = (turn["content"] for turn in rows[0]["messages"][:2])
    assert shown == (folder / "example.txt").read_text().strip()
    assert f"⟦{answer}<|im_end|>" in shown
    assert question in shown.split("⟦")[0]


def test_a_pair_is_shown_as_both_of_its_renderings(base: Path, tmp_path: Path) -> None:
    """Each as the model reads it."""
    rows = preferences(3)[1:]
    train(tmp_path / "job", order(PreferenceStage(optim=optim(max_steps=1)), base), rows)
    shown = (tmp_path / "job" / "example.txt").read_text()

    chosen, rejected = shown.split("\nrejected:\n")
    assert f"⟦{rows[0]['chosen']}<|im_end|>⟧" in chosen
    assert f"⟦{rows[0]['rejected']}<|im_end|>⟧" in rejected


def test_importing_a_base_changes_no_weight(base: Path, tmp_path: Path) -> None:
    """The first version of a lineage with a ready-made model is that model."""
    train(tmp_path / "job", order(ImportStage(), base), [])

    original = load_file(base / "model.safetensors")
    assert all(torch.equal(original[name], value) for name, value in weights(tmp_path / "job").items())


def test_progress_says_how_far_and_how_fast(base: Path, tmp_path: Path) -> None:
    """What a person watching wants to know, in the last report at the latest."""
    reports: list[dict[str, Any]] = []
    made, rows = every_stage(base, max_steps=3)["sft"]
    run_here(write_job(tmp_path / "job", made, rows), report=reports.append)

    assert reports[-1]["step"] == reports[-1]["steps"] == 3
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_s", "eta_s", "memory_bytes"} <= reports[-1].keys()


def test_an_adapter_is_the_same_bytes_in_every_process(base: Path, tmp_path: Path) -> None:
    """Its layers are a set, which each process would write in an order of its own."""
    train(tmp_path / "job", order(SftStage(optim=optim(max_steps=1)), base, LORA), chats(5))
    layers = json.loads((tmp_path / "job" / "out" / "adapter_config.json").read_text())["target_modules"]

    assert len(layers) > 1
    assert layers == sorted(layers)


@pytest.mark.skipif(
    not {"amx_bf16", "avx512_bf16"} & {name for name, has in torch.cpu.get_capabilities().items() if has},
    reason="this processor does not multiply bfloat16",
)
def test_training_in_bfloat16_ends_near_training_in_float32(base: Path, tmp_path: Path) -> None:
    """Weights stay float32; losses agree in their first digits."""
    made, rows = every_stage(base, max_steps=4)["sft"]
    for name in ("auto", "float32"):
        folder = write_job(tmp_path / name, made, rows)
        assert Attempts().finish(folder, tmp_path / "models", {"VCLLM_PRECISION": name}) == 0
        assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}

    for one, other in zip(*(figures(tmp_path / name) for name in ("auto", "float32")), strict=True):
        assert other == pytest.approx(one, rel=0.05, abs=0.05)


def test_figures_go_to_a_tracker(base: Path, tmp_path: Path) -> None:
    """Named by an environment variable; its files appear in the run's folder."""
    pytest.importorskip("tensorboard")
    made, rows = every_stage(base, max_steps=3)["sft"]
    folder = write_job(tmp_path / "job", made, rows)

    code = Attempts().finish(folder, tmp_path / "models", {"VCLLM_TRACKERS": "tensorboard"})

    assert code == 0, (folder / "log.txt").read_text()
    events = list(folder.rglob("events.out.tfevents.*"))
    assert any(b"grad_norm" in file.read_bytes() for file in events)


def compiler() -> bool:
    return any(os.access(Path(folder) / "g++", os.X_OK) for folder in os.get_exec_path())


@pytest.mark.slow
@pytest.mark.skipif(not compiler(), reason="compiling for a processor needs a C++ compiler")
def test_a_compiled_model_trains_the_same(base: Path, tmp_path: Path) -> None:
    """Losses of every step, pairs of all lengths; nothing of the compilation is left in the version."""
    for name, wanted in (("plain", False), ("compiled", True)):
        how = optim(max_steps=4, compile=wanted, learning_rate=1e-3)
        folder = write_job(tmp_path / name, order(PreferenceStage(optim=how), base), preferences(30))
        assert Attempts().finish(folder, tmp_path / "models") == 0, (folder / "log.txt").read_text()

    for one, other in zip(*(figures(tmp_path / name) for name in ("plain", "compiled")), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()
    assert AutoTokenizer.from_pretrained(tmp_path / "compiled" / "out") is not None
