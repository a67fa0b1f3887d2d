"""Rows that lie end to end are computed as if each stood alone, and branches as if the prefix were repeated."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests import training_rows as rows_of
from tests.training_rows import assert_same, corpus_of, document, grads, mixed, pair, unrolled, whole
from vcllm.training import layout
from vcllm.training.batches import Batch
from vcllm.training.body import Packed, Padded, choose_body
from vcllm.training.corpus import Encoded
from vcllm.training.learner import AnswerLearner, AnswerLoss, Totals
from vcllm.training.verify import check_head

KINDS = ("gqa", "window", "softcap")


def packed(model: Any) -> Packed:
    model.set_attn_implementation(layout.NAME)
    return Packed(model)


def alone(model: Any, row: Encoded) -> list[torch.Tensor]:
    """Hidden states of each sequence of a row by itself, through the model as it is for anybody."""
    return [model.base_model(input_ids=torch.tensor([ids]), use_cache=False)[0][0] for ids, _ in unrolled(row)]


def laid_out(model: Any, rows: list[Encoded]) -> torch.Tensor:
    """Those states in the packed order."""
    parts = []
    for row in rows:
        first, *second = alone(model, row)
        parts += [first, *(each[row.prefix :] for each in second)]
    return torch.cat(parts)


@pytest.mark.parametrize("width", [0, 10_000], ids=["fused", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_have_the_hidden_states_of_each_row_alone(
    kind: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed lengths and forks; shared keys, short windows, capped scores; by either kernel."""
    rows, model = mixed(random.Random(1)), rows_of.model(kind)
    monkeypatch.setattr(layout, "EAGER_WIDTH", width)
    with torch.no_grad():
        expected = laid_out(model, rows)
        found = packed(model)(whole(corpus_of(tmp_path, rows)))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_have_the_hidden_states_of_each_row_alone(kind: str, tmp_path: Path) -> None:
    """The fallback says the same."""
    rows, model = mixed(random.Random(2)), rows_of.model(kind)
    with torch.no_grad():
        found = Padded(model)(whole(corpus_of(tmp_path, rows)))

        torch.testing.assert_close(found, laid_out(model, rows), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("body", [packed, Padded], ids=["packed", "padded"])
@pytest.mark.parametrize("width", [0, 10_000], ids=["fused", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prefix_gives_the_gradients_of_two_sequences(
    kind: str, width: int, body: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight's gradient of a function of all states, the prefix's counted in both branches' future."""
    rows, model = mixed(random.Random(3)), rows_of.model(kind)
    monkeypatch.setattr(layout, "EAGER_WIDTH", width)
    torch.manual_seed(0)
    probe = torch.randn(sum(len(row.ids) for row in rows), rows_of.SHAPE["hidden_size"])
    (laid_out(model, rows) * probe).sum().backward()
    expected = grads(model)

    (body(model)(whole(corpus_of(tmp_path, rows))) * probe).sum().backward()

    assert_same(grads(model), expected)


def test_other_rows_of_a_micro_batch_change_not_a_bit(tmp_path: Path) -> None:
    """Documents do not see each other."""
    chance = random.Random(4)
    rows = [document(chance, 20), document(chance, 20), pair(chance, 6, 7, 7)]
    changed = [rows[0], document(chance, 20), pair(chance, 6, 7, 7)]
    body = packed(rows_of.model("gqa"))
    with torch.no_grad():
        before = body(whole(corpus_of(tmp_path / "a", rows)))
        after = body(whole(corpus_of(tmp_path / "b", changed)))

    assert torch.equal(before[:20], after[:20])
    assert not torch.equal(before[20:40], after[20:40])


@pytest.mark.parametrize(("changed", "same"), [("chosen", slice(13, 20)), ("rejected", slice(6, 13))])
def test_branches_do_not_see_each_other(changed: str, same: slice, tmp_path: Path) -> None:
    """Another chosen answer leaves the rejected one's states as they are to the bit, and the reverse."""
    row = pair(random.Random(5), 6, 7, 7)
    ids = list(row.ids)
    ids[8 if changed == "chosen" else 15] = 1
    other = Encoded(ids, row.learned, prefix=row.prefix, fork=row.fork)
    body = packed(rows_of.model("gqa"))
    with torch.no_grad():
        before = body(whole(corpus_of(tmp_path / "a", [row])))
        after = body(whole(corpus_of(tmp_path / "b", [other])))

    assert torch.equal(before[:6], after[:6])
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[6:], after[6:])


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    """Computing activations twice gives them twice the same."""
    rows, model = mixed(random.Random(6)), rows_of.model("gqa")
    learner = AnswerLearner(model, packed(model), AnswerLoss(pair_weight=0.5)).train()
    batch = whole(corpus_of(tmp_path, rows))
    learner(batch, Totals(50.0, 3.0)).backward()
    expected = grads(model)
    counted = count_calls(model)

    model.activation_checkpointing_enable({"use_reentrant": False})
    learner(batch, Totals(50.0, 3.0)).backward()

    assert counted() == 2
    assert_same(grads(model), expected, rtol=1e-6)


def count_calls(model: Any) -> Any:
    """How often the first layer's feed-forward part begins from now on (the second time it need not end)."""
    calls: list[int] = []
    model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def test_a_model_with_its_own_attention_is_padded_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be packed is found out by trying, and trains all the same."""

    class Deaf(GPT2LMHeadModel):
        def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
            if attn_implementation == layout.NAME:
                raise ValueError("this model knows no other attention")

    rows = mixed(random.Random(7))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=rows_of.VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=128)
    with caplog.at_level(logging.WARNING):
        body = choose_body(Deaf(config).eval(), corpus_of(tmp_path, rows))

    assert isinstance(body, Padded)
    assert "padded instead, which is slower" in caplog.text


def test_logits_that_are_scaled_are_refused(tmp_path: Path) -> None:
    """The chunked head knows a linear layer and a cap; a model that does more would learn another loss."""
    model = rows_of.model("untied")
    model.lm_head.register_forward_hook(lambda module, given, made: made * 0.5)
    corpus = corpus_of(tmp_path, mixed(random.Random(8)))
    from vcllm.training.parallel import Parallel

    with pytest.raises(Exception, match="Choose another base model"):
        check_head(AnswerLearner(model, packed(model), AnswerLoss()), corpus, Parallel())


def batch_of(tmp_path: Path, rows: list[Encoded]) -> Batch:
    return whole(corpus_of(tmp_path, rows))


def test_targets_are_predicted_from_the_token_before_also_across_a_fork(tmp_path: Path) -> None:
    """The first token of the second branch follows the prefix, not the first branch."""
    row = pair(random.Random(9), 4, 3, 2)

    batch = batch_of(tmp_path, [document(random.Random(9), 5), row])

    assert batch.source_M.tolist() == [0, 1, 2, 3, 5 + 3, 5 + 4, 5 + 5, 5 + 3, 5 + 7]
    assert batch.target_M.tolist() == batch.ids_N[[1, 2, 3, 4, 9, 10, 11, 12, 13]].tolist()
    assert batch.sequence_M.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert batch.position_N.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 4, 5]
