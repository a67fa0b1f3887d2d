"""The chunked head computes what full logits would, and never holds them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import training_rows as rows_of
from tests.training_rows import assert_same, corpus_of, grads, mixed, pair, plain_logprobs, whole
from vcllm.training import head as head_module
from vcllm.training.body import Packed, choose_body
from vcllm.training.head import Head, chunked_loss, token_logprobs
from vcllm.training.learner import AnswerLearner, AnswerLoss, Totals, find_head

HIDDEN, VOCABULARY = 12, 41
ROW_ENDS = [3, 3, 10, 11, 24]
"""Rows of 3, 0, 7, 1 and 13 learned tokens."""


def nll(logprob_C: Tensor, start: int, stop: int) -> Tensor:
    weight_M = torch.linspace(0.5, 2.0, ROW_ENDS[-1])
    return -(logprob_C * weight_M[start:stop]).sum()


def squared(logprob_C: Tensor, start: int, stop: int) -> Tensor:
    """Not linear in any log-probability: rows must come whole."""
    bounds = [0, *ROW_ENDS]
    whole_rows = [(low, high) for low, high in itertools.pairwise(bounds) if start <= low < high <= stop]
    assert sum(high - low for low, high in whole_rows) == stop - start, "a row was torn"
    parts = [logprob_C[low - start : high - start].sum() for low, high in whole_rows]
    return torch.stack([F.logsigmoid(part / 10) + (part - 2).square() / 50 for part in parts]).sum()


def tensors(*, bias: bool, frozen: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(0)
    hidden_MH = torch.randn(ROW_ENDS[-1], HIDDEN, requires_grad=True)
    weight_VH = torch.randn(VOCABULARY, HIDDEN, requires_grad=not frozen)
    bias_V = torch.randn(VOCABULARY, requires_grad=not frozen) if bias else None
    return hidden_MH, weight_VH, bias_V, torch.randint(VOCABULARY, (ROW_ENDS[-1],))


def set_chunk(monkeypatch: pytest.MonkeyPatch, size: int, vocabulary: int = VOCABULARY) -> None:
    monkeypatch.setattr(head_module, "SMALLEST_CHUNK", size)
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", size * vocabulary)


@pytest.mark.parametrize("row_loss", [nll, squared])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 24, 1000])
def test_loss_and_gradients_are_those_of_full_logits(
    row_loss: Any, softcap: float | None, bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a chunk is shorter than a row, as long, or holds all of them."""
    hidden_MH, weight_VH, bias_V, target_M = tensors(bias=bias, frozen=False)
    leaves = [leaf for leaf in (hidden_MH, weight_VH, bias_V) if leaf is not None]
    logits_MV = F.linear(hidden_MH, weight_VH, bias_V)
    capped_MV = logits_MV if softcap is None else softcap * torch.tanh(logits_MV / softcap)
    logprob_M = capped_MV.log_softmax(-1).gather(1, target_M[:, None])[:, 0]
    expected = row_loss(logprob_M, 0, ROW_ENDS[-1])
    expected_grads = torch.autograd.grad(3 * expected, leaves)
    set_chunk(monkeypatch, chunk)

    loss = chunked_loss(Head(weight_VH, bias_V, softcap), hidden_MH, target_M, ROW_ENDS, row_loss)

    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-5)
    for found, wanted in zip(torch.autograd.grad(3 * loss, leaves), expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_get_theirs() -> None:
    """As under an adapter."""
    hidden_MH, weight_VH, _, target_M = tensors(bias=False, frozen=True)
    expected = nll(F.linear(hidden_MH, weight_VH).log_softmax(-1).gather(1, target_M[:, None])[:, 0], 0, 24)
    (expected_grad,) = torch.autograd.grad(expected, hidden_MH)

    chunked_loss(Head(weight_VH), hidden_MH, target_M, ROW_ENDS, nll).backward()

    assert weight_VH.grad is None
    torch.testing.assert_close(hidden_MH.grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_under_autocast_the_loss_is_that_of_autocast_logits() -> None:
    """In bfloat16, up to its rounding."""
    hidden_MH, weight_VH, bias_V, target_M = tensors(bias=True, frozen=False)
    leaves = [hidden_MH, weight_VH, bias_V]
    with torch.autocast("cpu", torch.bfloat16):
        logits_MV = F.linear(hidden_MH, weight_VH, bias_V).float()
        expected = nll(logits_MV.log_softmax(-1).gather(1, target_M[:, None])[:, 0], 0, 24)
        loss = chunked_loss(Head(weight_VH, bias_V), hidden_MH, target_M, ROW_ENDS, nll)

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    expected_grads = torch.autograd.grad(expected, leaves)
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected_grads, strict=True):
        assert found.dtype is wanted.dtype
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_log_probabilities_without_gradients_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """References are made of them."""
    hidden_MH, weight_VH, bias_V, target_M = tensors(bias=True, frozen=False)
    expected = F.linear(hidden_MH, weight_VH, bias_V).log_softmax(-1).gather(1, target_M[:, None])[:, 0]
    set_chunk(monkeypatch, 5)

    found = token_logprobs(Head(weight_VH, bias_V), hidden_MH, target_M)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [4, 16, 1000])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
@pytest.mark.parametrize("family", ["gqa", "untied", "softcap"])
def test_preferences_and_their_supervised_terms_are_those_of_the_formula(
    family: str, kind: Any, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient of every weight, tied heads included, against each sequence alone through the whole model."""
    rows = mixed(random.Random(0))
    references = {1: (-20.0, -31.0), 4: (-9.0, -8.5), 6: (-60.0, -22.0)}
    model, batch = rows_of.model(family), whole(corpus_of(tmp_path, rows))
    totals = Totals(weight=7.0, pairs=3.0)
    loss = AnswerLoss(beta=0.3, kind=kind, pair_weight=0.4, other_weight=0.7, reference=references)
    expected = torch.zeros(())
    for number, row in enumerate(rows):
        chosen, *others = plain_logprobs(model, row)
        expected = expected - row.weight * (0.4 if others else 0.7) * chosen.sum() / totals.weight
        for rejected in others:
            one, other = references[number]
            if kind == "ipo":
                gap = chosen.mean() - rejected.mean() - one / len(chosen) + other / len(rejected)
                each = (gap - 1 / (2 * 0.3)) ** 2
            else:
                each = -F.logsigmoid(0.3 * (chosen.sum() - rejected.sum() - one + other))
            expected = expected + row.weight * each / totals.pairs
    expected.backward()
    expected_grads = grads(model)
    learner = AnswerLearner(model, choose_body(model, corpus_of(tmp_path, rows)), loss)
    set_chunk(monkeypatch, chunk, rows_of.VOCABULARY)

    found = learner(batch, totals)
    found.backward()

    assert isinstance(learner.body, Packed)
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=2e-6, atol=1e-6)
    assert_same(grads(model), expected_grads)


def test_a_gap_that_equals_the_references_costs_log_two(tmp_path: Path) -> None:
    """Where nothing was learned yet, DPO starts at log 2 a pair."""
    rows = [pair(random.Random(seed), 6, 4, 5) for seed in range(3)]
    model, corpus = rows_of.model("gqa"), corpus_of(tmp_path, rows)
    learner = AnswerLearner(model, choose_body(model, corpus), AnswerLoss(pair_weight=0.0))
    sums_R2 = learner.logprobs(whole(corpus)).view(-1, 2)
    learner.loss.reference.update({row: (float(one), float(two)) for row, (one, two) in enumerate(sums_R2)})

    loss = learner(whole(corpus), Totals(weight=1.0, pairs=3.0))

    assert loss.item() == pytest.approx(0.693147, abs=1e-5)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))])
        return made


@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen-head"])
def test_logits_of_more_than_a_chunk_never_exist(frozen: bool) -> None:
    """Forward and backward at a vocabulary of 151 thousand: no tensor is larger than a chunk's logits."""
    vocabulary, tokens = 151_936, 512
    torch.manual_seed(0)
    hidden_MH = torch.randn(tokens, 4, requires_grad=True)
    weight_VH = torch.randn(vocabulary, 4, requires_grad=not frozen)
    target_M = torch.randint(vocabulary, (tokens,))

    with Largest() as largest:
        row_ends = list(range(64, tokens + 1, 64))
        chunked_loss(Head(weight_VH), hidden_MH, target_M, row_ends, lambda logprob_C, *_: -logprob_C.sum()).backward()

    assert hidden_MH.grad is not None
    assert largest.numel == Head(weight_VH).chunk * vocabulary == 128 * vocabulary


def test_an_output_layer_of_another_kind_is_refused(tmp_path: Path) -> None:
    """The sentence says what to leave out of the recipe."""
    model = rows_of.model("untied")
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))

    with pytest.raises(Exception, match="Leave it out of lora.target_modules"):
        find_head(model)
