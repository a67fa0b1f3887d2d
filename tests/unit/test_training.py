"""Training stages: exact resume, equalities between ways of computing the same thing, and clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vcllm.charter import load_charter
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import (
    AttackerStage,
    Base,
    CriticStage,
    ImportStage,
    Lora,
    Optim,
    PreferenceStage,
    PretrainStage,
    Scratch,
    SftStage,
    StageOrder,
)
from vcllm.starter.world import World
from vcllm.stores.models import ModelStore
from vcllm.training import stages
from vcllm.training.batches import collate, encode_chats, plan_epoch
from vcllm.training.checkpoints import Checkpoints
from vcllm.training.loop import Run, learning_rate, plan_steps
from vcllm.training.losses import dpo_loss, sequence_logprobs, token_logprobs, weighted_nll
from vcllm.training.run import run_order
from vcllm.training.scratch import new_model, train_tokenizer

TINY = Scratch(vocab_size=700, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
WORLD = World(load_charter(), 0)
CORPUS = list(WORLD.base_corpus(300))
CHATS = World(load_charter(), 1).sft_rows(40, 20)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    texts = [row["text"] if "text" in row else row["messages"][-1]["content"] for row in CORPUS]
    return train_tokenizer(texts, TINY.vocab_size)


def tiny_model(tokenizer):
    torch.manual_seed(0)
    return new_model(TINY, tokenizer)


def quiet_run(folder, seed=0):
    return Run(Checkpoints(folder / "checkpoints"), lambda _: None, seed)


def order(stage, **fields):
    fields = {
        "role": "actor",
        "version": "v1",
        "lineage": "l",
        "seed": 3,
        "base": Base(scratch=TINY),
    } | fields
    return StageOrder(
        stage=stage,
        dataset="",
        recipe="test",
        recipe_hash="",
        charter="",
        probes=["你好？", "Hello?"],
        **fields,
    )


def write_job(folder, made, rows):
    folder.mkdir(parents=True)
    (folder / "order.json").write_text(made.model_dump_json())
    (folder / "dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def pretrain_order(steps, checkpoint_every_s=30.0):
    optim = Optim(learning_rate=1e-3, batch_tokens=512, max_steps=steps, checkpoint_every_s=checkpoint_every_s)
    return order(PretrainStage(optim=optim))


def start(folder, store):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vcllm.training", str(folder), str(store)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    """Kill -9 after a checkpoint, run again, and end with the very weights of an uninterrupted run."""
    straight = write_job(tmp_path / "a", pretrain_order(60), CORPUS)
    killed = write_job(tmp_path / "b", pretrain_order(60, checkpoint_every_s=0.05), CORPUS)
    assert start(straight, tmp_path / "models").wait(120) == 0

    process = start(killed, tmp_path / "models")
    deadline = time.monotonic() + 60
    while not list((killed / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    died = process.wait()
    steps_before = int(max((killed / "checkpoints").glob("step-*")).name.removeprefix("step-"))
    assert start(killed, tmp_path / "models").wait(120) == 0

    assert died == -signal.SIGKILL
    assert 0 < steps_before < 60
    assert sha256(killed / "out" / "model.safetensors") == sha256(straight / "out" / "model.safetensors")


def test_a_finished_run_is_not_done_again(tmp_path):
    """Running the same folder twice gives the first result back."""
    folder = write_job(tmp_path / "a", pretrain_order(2), CORPUS)
    first = run_order(folder, ModelStore(tmp_path / "models"), lambda _: None)

    assert run_order(folder, ModelStore(tmp_path / "models"), lambda _: pytest.fail("trained again")) == first


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, tokenizer, caplog):
    """Half a file is not a checkpoint; the log says so."""
    model = tiny_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, model, optimizer)
    checkpoints.save(2, model, optimizer)
    (tmp_path / "step-00000002" / "tensors.safetensors").write_bytes(b"half")

    assert checkpoints.restore(model, optimizer) == 1
    assert "step-00000002 is damaged" in caplog.text


def test_only_the_last_two_checkpoints_are_kept(tmp_path, tokenizer):
    """A long run does not fill the disk."""
    model = tiny_model(tokenizer)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, model, torch.optim.AdamW(model.parameters()))

    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_loss_of_a_batch_is_the_sum_of_its_halves(tokenizer):
    """Padding and batch mates change nothing."""
    model = tiny_model(tokenizer).eval()
    examples = encode_chats(tokenizer, CHATS[:6], 128)

    def nll(part):
        batch = collate(part, tokenizer.pad_token_id, CPU)
        return weighted_nll(*token_logprobs(model, batch), batch.weights_B)[0]

    assert nll(examples).item() == pytest.approx((nll(examples[:2]) + nll(examples[2:])).item(), rel=1e-5)


def test_log_probabilities_equal_those_of_the_whole_model(tokenizer):
    """Applying the head to learned positions only gives what `model(...)` gives."""
    model = tiny_model(tokenizer).eval()
    batch = collate(encode_chats(tokenizer, CHATS[:4], 128), tokenizer.pad_token_id, CPU)
    logprob_N, row_N = token_logprobs(model, batch)
    whole_BTV = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT).logits.log_softmax(-1)
    expected_BT = whole_BTV[:, :-1].gather(-1, batch.ids_BT[:, 1:, None])[..., 0] * batch.targets_BT[:, 1:]

    torch.testing.assert_close(sequence_logprobs(logprob_N, row_N, 4), expected_BT.sum(1))


def test_only_the_answer_is_learned_and_its_end_with_it(tokenizer):
    """The mask begins after the assistant token and includes the end of turn."""
    (example,) = encode_chats(tokenizer, CHATS[:1], 128)
    learned = tokenizer.decode([t for t, on in zip(example.ids, example.targets, strict=True) if on])

    assert learned == CHATS[0]["messages"][-1]["content"] + tokenizer.eos_token


def test_training_is_refused_when_the_end_of_turn_is_not_learned(tokenizer):
    """Such a model would never stop talking."""
    with pytest.raises(BadRequest, match="would never learn to stop"):
        encode_chats(tokenizer, CHATS, 16)


def test_dpo_starts_at_log_two_and_falls_as_the_gap_grows():
    """Equal gaps say nothing; a wider one than the reference's is rewarded."""
    zero = torch.zeros(1)

    assert dpo_loss(zero, zero, 0.1).item() == pytest.approx(0.6931, abs=1e-4)
    assert (
        dpo_loss(torch.tensor([5.0]), zero, 0.1) < dpo_loss(zero, zero, 0.1) < dpo_loss(torch.tensor([-5.0]), zero, 0.1)
    )


def test_the_plan_covers_every_row_once_within_the_token_budget():
    """Each epoch shows every row exactly once and no batch is larger than asked."""
    lengths = [1 + (7 * i) % 40 for i in range(500)]
    plan = plan_epoch(lengths, 256, seed=1, epoch=0)

    assert sorted(row for batch in plan for row in batch) == list(range(500))
    assert max(len(batch) * max(lengths[row] for row in batch) for batch in plan) <= 256
    assert plan != plan_epoch(lengths, 256, seed=1, epoch=1)


def test_half_an_epoch_is_half_the_steps():
    """`epochs` may be a fraction, and `max_steps` cuts it further."""
    lengths = [10] * 400

    assert len(plan_steps(lengths, Optim(learning_rate=1, batch_tokens=100, epochs=0.5), 0)) == 20
    assert len(plan_steps(lengths, Optim(learning_rate=1, batch_tokens=100, max_steps=7), 0)) == 7


def test_the_learning_rate_warms_up_and_comes_down():
    """From nothing to the peak to almost nothing."""
    optim = Optim(learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate(optim, step, 100) for step in range(100)]

    assert rates[0] < rates[5] < max(rates) == 1.0
    assert rates[-1] < 0.05


def test_sft_lowers_the_loss_of_its_answers(tmp_path, tokenizer):
    """A few steps on a few rows are enough to see it learn."""
    model, run = tiny_model(tokenizer), quiet_run(tmp_path)
    batch = collate(encode_chats(tokenizer, CHATS, 128), tokenizer.pad_token_id, CPU)
    before = -token_logprobs(model, batch)[0].mean().item()
    stages.train_on_answers(model, tokenizer, CHATS, Optim(learning_rate=3e-3, batch_tokens=1024, epochs=12), run)

    assert -token_logprobs(model, batch)[0].mean().item() < before - 1


def test_a_row_of_weight_zero_teaches_nothing(tmp_path, tokenizer):
    """Weights scale what a row contributes: the Attacker's wins rely on it."""
    optim = Optim(learning_rate=1e-3, batch_tokens=100_000)
    rows = [{**row, "weight": 1.0} for row in CHATS[:10]] + [{**row, "weight": 0.0} for row in CHATS[10:20]]
    with_zeros, without = tiny_model(tokenizer), tiny_model(tokenizer)
    stages.train_on_answers(with_zeros, tokenizer, rows, optim, quiet_run(tmp_path / "a"))
    stages.train_on_answers(without, tokenizer, rows[:10], optim, quiet_run(tmp_path / "b"))

    for one, other in zip(with_zeros.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_preference_training_widens_the_gap_between_chosen_and_rejected(tmp_path, tokenizer):
    """After the stage the model prefers what the Critic preferred more than before."""
    answers = {"chosen": "It is not fair.", "rejected": "Yes, it is."}
    rows = [{"prompt": [{"role": "user", "content": f"Is it so, {n}?"}], **answers} for n in range(8)]
    alone = {"prompt": [{"role": "user", "content": "And this?"}], "chosen": "Fair people differ.", "rejected": None}
    rows += [alone, CHATS[0]]
    model, run = tiny_model(tokenizer), quiet_run(tmp_path)
    stage = PreferenceStage(optim=Optim(learning_rate=1e-3, batch_tokens=4096, epochs=20))
    stages.train_preference(model, tokenizer, rows, stage, run, tmp_path / "reference.safetensors")
    chosen = encode_chats(tokenizer, [stages._chosen(row) for row in rows[:8]], 128)
    rejected = encode_chats(tokenizer, [stages._turns(row["prompt"], row["rejected"]) for row in rows[:8]], 128)
    gaps = stages._gaps(model, tokenizer, list(zip(chosen, rejected, strict=True)))
    reference = load_file(tmp_path / "reference.safetensors")["gaps"]

    assert (gaps > reference).all()
    assert (run.metrics["pairs"], run.metrics["approved_only"]) == (8, 1)


def test_the_critic_learns_its_classes_and_says_how_well(tmp_path, tokenizer):
    """A classifier with a class per outcome, loadable with plain transformers, with a fitted temperature."""
    folder = write_job(tmp_path / "base", pretrain_order(2), CORPUS)
    store = ModelStore(tmp_path / "models")
    run_order(folder, store, lambda _: None)
    rows = World(load_charter(), 2).critic_rows(200)
    stage = CriticStage(optim=Optim(learning_rate=1e-3, batch_tokens=1024))
    made = order(stage, role="critic", version="c1", base=Base(model=str(folder / "out")))
    result = run_order(write_job(tmp_path / "critic", made, rows), store, lambda _: None)
    config = json.loads((tmp_path / "critic" / "out" / "config.json").read_text())

    assert list(config["id2label"].values()) == ["consistent", "violating", "refusal", "broken"]
    assert config["critic_temperature"] > 0
    assert 0 <= result["metrics"]["held_out_accuracy"] <= 1
    assert result["probes"] == []


@pytest.mark.parametrize("stage", [
    SftStage(optim=Optim(learning_rate=1e-3, max_steps=2)),
    AttackerStage(optim=Optim(learning_rate=1e-3, max_steps=2)),
    PreferenceStage(optim=Optim(learning_rate=1e-3, max_steps=2)),
], ids=["sft", "attacker", "preference"])  # fmt: skip
def test_a_ready_made_model_is_trained_as_an_adapter(tmp_path, stage):
    """With `lora` the base stays as it is; the version holds adapter and tokenizer and says what it sits on."""
    base = write_job(tmp_path / "base", pretrain_order(1), CORPUS)
    store = ModelStore(tmp_path / "models")
    run_order(base, store, lambda _: None)
    made = order(stage, base=Base(model=str(base / "out")), lora=Lora(rank=4))
    result = run_order(write_job(tmp_path / "lora", made, CHATS), store, lambda _: None)
    files = {file.name for file in (tmp_path / "lora" / "out").iterdir()}

    assert (result["format"], result["base"]) == ("adapter", str(base / "out"))
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files


def test_importing_a_base_changes_no_weight(tmp_path):
    """The first version of a lineage with a ready-made model is that model."""
    base = write_job(tmp_path / "base", pretrain_order(1), CORPUS)
    store = ModelStore(tmp_path / "models")
    run_order(base, store, lambda _: None)
    made = order(ImportStage(), base=Base(model=str(base / "out")))
    run_order(write_job(tmp_path / "import", made, []), store, lambda _: None)

    original = load_file(base / "out" / "model.safetensors")
    imported = load_file(tmp_path / "import" / "out" / "model.safetensors")
    assert all(torch.equal(original[name], imported[name]) for name in original)


def test_probes_record_what_the_model_says(tmp_path):
    """One greedy answer for each probe, for servers to repeat."""
    result = run_order(write_job(tmp_path / "a", pretrain_order(1), CORPUS), ModelStore(tmp_path / "m"), lambda _: None)

    assert [probe["prompt"] for probe in result["probes"]] == ["你好？", "Hello?"]
