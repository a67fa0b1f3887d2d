"""Normalisation by our kernel: what the models compute, forward and backward, and only while they train."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vcllm.training.kernels import fast_norms

CPU = torch.device("cpu")


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

    with fast_norms(norm, CPU) as replaced:
        found = gradients(norm, x)

    assert replaced == 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_copy_of_a_model_uses_its_own_weights():
    """Sharding trains a copy: once its norms went on with the weights of the original."""
    norm = LlamaRMSNorm(8)
    with fast_norms(norm, CPU):
        other = copy.deepcopy(norm)
        torch.nn.init.constant_(other.weight, 3.0)

        torch.testing.assert_close(other(torch.ones(2, 8)), torch.full((2, 8), 3.0))


def test_other_norms_and_other_types_are_left_alone():
    """A layer norm stays, half precision goes the model's own way, and in the end all is as it was."""
    norm = LlamaRMSNorm(8)
    with fast_norms(torch.nn.ModuleList([norm, torch.nn.LayerNorm(8)]), CPU) as replaced:
        assert norm(torch.ones(2, 8, dtype=torch.bfloat16)).shape == (2, 8)

    assert replaced == 1
    assert "forward" not in vars(norm)
