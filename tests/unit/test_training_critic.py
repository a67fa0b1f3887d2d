"""The Critic's stage: a class per outcome, and a score for every criterion that its rows have scores for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from tests.fakes import tiny_causal, tiny_tokenizer
from vcllm.contracts.critiques import SCORED
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Base, CriticStage, Lora, Optim, StageOrder
from vcllm.engine.classes import class_probabilities, critic_text
from vcllm.engine.load import Loader
from vcllm.engine.prompts import encode
from vcllm.stores.models import ModelStore
from vcllm.training.batches import make_batch
from vcllm.training.corpus import Corpus, Counts, Encoded, write_corpus
from vcllm.training.critic import score_errors
from vcllm.training.encode import MAX_CRITERIA, check_labels, criteria_of
from vcllm.training.learner import ClassLearner, Totals
from vcllm.training.losses import score_losses
from vcllm.training.run import run_order

CPU = torch.device("cpu")
ANSWERS = {
    "It is not fair.": ("consistent", {"stance": 1.0, "manner": 1.0}),
    "Yes, it is.": ("violating", {"stance": 0.0}),
    "Sorry.": ("refusal", {"manner": 0.25}),
    "公平": ("broken", {}),
}
ROWS = [
    {
        "messages": [{"role": "user", "content": f"Is it so, {n}?"}, {"role": "assistant", "content": answer}],
        "label": label,
        **({"scores": scores} if scores else {}),
    }
    for n in range(12)
    for answer, (label, scores) in ANSWERS.items()
]
PLAIN = [{key: value for key, value in row.items() if key != "scores"} for row in ROWS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer()
    tiny_causal(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(
    base: Path, folder: Path, rows: list[dict[str, Any]], lora: Lora | None = None, **changes: Any
) -> tuple[dict[str, Any], Path]:
    """Metrics, and the folder of the critic."""
    steps = changes.pop("steps", 2)
    optim = Optim(learning_rate=1e-2, batch_tokens=2048, epochs=steps, max_steps=steps, schedule="constant")
    order = StageOrder(
        stage=CriticStage(optim=optim, **changes),
        role="critic",
        version="c1",
        lineage="l",
        seed=0,
        base=Base(model=str(base)),
        lora=lora,
        dataset="",
        recipe="test",
        recipe_hash="",
        charter="",
        threads=1,
    )
    folder.mkdir()
    (folder / "order.json").write_text(order.model_dump_json())
    (folder / "dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_order(folder, ModelStore(folder / "models"), lambda _: None)["metrics"], folder / "out"


def test_a_critic_learns_the_scores_of_its_rows(base: Path, tmp_path: Path):
    """Each criterion from the rows that have it, beside the classes; the error on rows kept apart is told."""
    metrics, out = train(base, tmp_path / "job", ROWS, steps=60)
    loaded = Loader("classifier").load(out)
    texts = [critic_text(loaded.tokenizer, "Is it so, 99?", answer) for answer in ANSWERS]
    values = class_probabilities(loaded.model, encode(loaded.tokenizer, texts))

    for found, (label, scores) in zip(values, ANSWERS.values(), strict=True):
        by_label = dict(zip(loaded.model.config.id2label.values(), found, strict=True))
        assert max(SCORED, key=by_label.__getitem__) == label
        for criterion, score in scores.items():
            assert by_label[f"score:{criterion}"] == pytest.approx(score, abs=0.15)
    assert set(metrics["held_out_score_errors"]) == {"manner", "stance"}
    assert max(metrics["held_out_score_errors"].values()) < 0.15


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_outputs_are_named_and_open_with_plain_transformers(base: Path, tmp_path: Path, lora: Lora | None):
    """Outcomes first, then the criteria in the order of their names."""
    _, out = train(base, tmp_path / "job", ROWS, lora)
    config = json.loads((out / "config.json").read_text())

    assert list(config["id2label"].values()) == [*SCORED, "score:manner", "score:stance"]
    assert config["critic_criteria"] == ["manner", "stance"]
    if lora is None:
        plain = AutoModelForSequenceClassification.from_pretrained(out)
        assert plain.score.out_features == plain.config.num_labels == 6
    else:
        served = Loader("classifier").load(out, base=base).model
        assert len(class_probabilities(served, [[5, 6, 7]])[0]) == 6


@pytest.mark.parametrize(("rows", "weight"), [(PLAIN, 0.5), (ROWS, 0.0)], ids=["no scores", "not wanted"])
def test_without_scores_a_critic_is_what_it_was(base: Path, tmp_path: Path, rows: list[dict[str, Any]], weight: float):
    """Four classes, the same weights whatever the scores' weight, and no word of criteria."""
    metrics, out = train(base, tmp_path / "job", rows, score_weight=weight)
    _, other = train(base, tmp_path / "other", PLAIN, score_weight=0.9)
    config = json.loads((out / "config.json").read_text())

    assert list(config["id2label"].values()) == list(SCORED)
    assert config["critic_criteria"] == [] and "held_out_score_errors" not in metrics
    assert (out / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


class Fixed(nn.Module):
    """A body that says the same of a row wherever it stands, and a head."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(3, num_labels)

    def __call__(self, batch: Any) -> torch.Tensor:
        return torch.stack([batch.ids_N, batch.ids_N**2, batch.ids_N + 1], -1).float() / 50


def encoded(scores: list[tuple[float, ...]]) -> list[Encoded]:
    return [
        Encoded([3 + n, 2 + n], [False, False], label=n % 4, weight=1.0 + n, scores=row) for n, row in enumerate(scores)
    ]


def corpus_of(folder: Path, scores: list[tuple[float, ...]]) -> Corpus:
    return write_corpus(folder / "encoded", encoded(scores), Counts())


def test_scores_come_back_from_the_disk_with_their_gaps(tmp_path: Path):
    """A table as wide as there are criteria, NaN where a row has none; without criteria it has no width."""
    scores = corpus_of(tmp_path, [(1.0, np.nan), (0.25, 0.5)]).scores
    np.testing.assert_array_equal(scores, np.array([[1.0, np.nan], [0.25, 0.5]], np.float32))

    assert corpus_of(tmp_path / "none", [(), ()]).scores.shape == (2, 0)


def test_micro_batches_add_up_to_the_step(tmp_path: Path):
    """Rows without a score, and micro-batches without any, take nothing from the others."""
    nan = float("nan")
    corpus = corpus_of(tmp_path, [(1.0, nan), (nan, nan), (0.25, 0.5), (nan, 0.0)])
    model = Fixed(6)
    learner = ClassLearner(model, model, torch.ones(4), score_weight=2.0)
    totals = Totals(weight=10.0, scores=11.0)

    whole = learner(make_batch(corpus, np.arange(4), CPU), totals)
    parts = [learner(make_batch(corpus, np.array(rows), CPU), totals) for rows in ([0, 2], [1], [3])]

    torch.testing.assert_close(sum(parts), whole)


def test_an_unknown_score_has_no_loss_and_no_gradient():
    """NaN is absent, not zero; a soft target is met best by its own probability."""
    logits = torch.tensor([[0.3, 0.3], [0.0, -1.0986]], requires_grad=True)
    losses = score_losses(logits, torch.tensor([[float("nan"), 1.0], [0.5, 0.25]]))
    losses.sum().backward()

    assert losses[0, 0] == 0 and losses[0, 1] > 0
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, 0], torch.zeros(2))
    torch.testing.assert_close(logits.grad[1], torch.zeros(2), atol=1e-4, rtol=0)


def test_errors_are_over_the_rows_that_have_the_score():
    """A criterion that none of them has is left out."""
    target = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")]])

    assert score_errors(torch.zeros(2, 2), target, ["stance", "facts"]) == {"stance": 0.5}


def test_criteria_are_found_in_all_rows_and_have_a_limit():
    """An id that differs from row to row would make a head without end."""
    assert criteria_of(ROWS) == ["manner", "stance"]
    assert criteria_of(PLAIN) == []
    with pytest.raises(BadRequest, match="more than 64 criteria"):
        criteria_of({"scores": {f"row_{n}": 1.0}} for n in range(MAX_CRITERIA + 1))


def test_a_score_beyond_its_bounds_is_refused_with_its_row():
    """Cross-entropy with it would have no floor."""
    with pytest.raises(BadRequest, match="Row 2 cannot teach a critic: its 'scores'"):
        list(check_labels([PLAIN[0], {**PLAIN[1], "scores": {"stance": 1.5}}]))
