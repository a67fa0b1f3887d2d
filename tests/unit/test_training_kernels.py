"""Norms and rotations by our kernels: what the models compute, forward and backward, and only while they train."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.tiny_models import FAMILIES
from vcllm.training.kernels import fast_kernels

CPU = torch.device("cpu")


def tiny(family: str) -> Any:
    return AutoModelForCausalLM.from_config(FAMILIES[family].config(FAMILIES[family].tokenizer()))


def gradients(norm: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, and the gradients of input and weight for a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None
    return y.detach(), x.grad, norm.weight.grad


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("shape", [(5, 16), (1, 5, 3, 16)])
def test_the_kernel_computes_what_the_model_computes(kind, shape):
    """Also where a family adds one to its weight."""
    norm = kind(16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = gradients(copy.deepcopy(norm), x)

    with fast_kernels(norm, CPU) as replaced:
        found = gradients(norm, x)

    assert replaced == (1, 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_copy_of_a_model_uses_its_own_weights():
    """Sharding trains a copy: once its norms went on with the weights of the original."""
    norm = LlamaRMSNorm(8)
    with fast_kernels(norm, CPU):
        other = copy.deepcopy(norm)
        torch.nn.init.constant_(other.weight, 3.0)

        torch.testing.assert_close(other(torch.ones(2, 8)), torch.full((2, 8), 3.0))


def test_other_norms_and_other_types_are_left_alone():
    """A layer norm stays, half precision goes the model's own way, and in the end all is as it was."""
    norm = LlamaRMSNorm(8)
    with fast_kernels(torch.nn.ModuleList([norm, torch.nn.LayerNorm(8)]), CPU) as replaced:
        assert norm(torch.ones(2, 8, dtype=torch.bfloat16)).shape == (2, 8)

    assert replaced == (1, 1)
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_models_rotations_are_what_they_were(family):
    """Gradients of every weight, through the norms and rotations of a whole model; afterwards all is as it was."""
    model = tiny(family)
    ids = torch.arange(24).view(2, 12)
    usual = sys.modules[type(model).__module__].apply_rotary_pos_emb

    def gradients_of_all() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters()}

    expected = gradients_of_all()
    with fast_kernels(model, CPU):
        assert sys.modules[type(model).__module__].apply_rotary_pos_emb is not usual
        found = gradients_of_all()

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert sys.modules[type(model).__module__].apply_rotary_pos_emb is usual


def test_a_rotation_of_another_kind_is_left_alone():
    """One that turns neighbours instead of halves, say, or takes other arguments."""

    def neighbours(q, k, cos, sin):
        def turned(x):
            return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    for other in (neighbours, lambda q, k: (q, k)):
        model = torch.nn.Linear(2, 2)
        family = ModuleType("a_model_file")
        family.apply_rotary_pos_emb = other
        sys.modules["a_model_file"] = family
        model.__class__ = type("Rotated", (torch.nn.Linear,), {"__module__": "a_model_file"})
        try:
            with fast_kernels(model, CPU) as replaced:
                assert replaced == (0, 0)
                assert family.apply_rotary_pos_emb is other
        finally:
            del sys.modules["a_model_file"]


def test_rotations_that_the_kernel_does_not_know_take_the_models_way():
    """Half precision, or a part of each head that is not rotated."""
    model = tiny("qwen3")
    family = sys.modules[type(model).__module__]
    q, k = torch.ones(1, 2, 3, 8, dtype=torch.bfloat16), torch.ones(1, 1, 3, 8, dtype=torch.bfloat16)
    cos, sin = torch.ones(1, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 3, 8, dtype=torch.bfloat16)
    expected = family.apply_rotary_pos_emb(q, k, cos, sin)

    with fast_kernels(model, CPU):
        torch.testing.assert_close(family.apply_rotary_pos_emb(q, k, cos, sin), expected, rtol=0, atol=0)
