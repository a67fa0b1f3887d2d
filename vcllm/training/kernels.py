"""RMS normalisation for float32 on a CPU, where a model's own spends most of its time writing intermediate results.

Two to three times as fast as the models' and torch's own (forward and backward, 1800 x 256 to 1800 x 768, one thread).
A model's layers are replaced only while it trains, and only those that are found to compute just this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class _RmsNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps) * (weight + shift), over the last dimension (Zhang and Sennrich 2019, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shift: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.shift = shift
        return (x * scale).mul_(weight + shift if shift else weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad,), (x, weight, scale) = grads, ctx.saved_tensors
        factor = weight + ctx.shift if ctx.shift else weight
        normal = x * scale
        out = grad * normal
        grad_weight = out.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        mean = (out @ factor).unsqueeze(-1).div_(x.shape[-1])
        torch.mul(grad, factor, out=out)
        return out.addcmul_(normal, mean, value=-1).mul_(scale), grad_weight, None, None


@contextmanager
def fast_norms(model: nn.Module, device: torch.device) -> Iterator[int]:
    """Within, RMS norms of the model run by this module's kernel; yields how many. On a CPU only."""
    replaced: list[Any] = [] if device.type != "cpu" else [m for m in model.modules() if _replace(m)]
    try:
        yield len(replaced)
    finally:
        for module in replaced:
            del module.forward, module.fast_norm


def _replace(module: Any) -> bool:
    """Whether the module is an RMS norm, which is tried out, and now runs by the kernel."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(eps, float):
        return False
    x = torch.linspace(-2, 3, 3 * len(weight), dtype=weight.dtype, device=weight.device).view(3, -1)
    with torch.no_grad():
        expected = module(x)
        shift = next((s for s in (0.0, 1.0) if _close(_RmsNorm.apply(x, weight, eps, s), expected)), None)
    if shift is None:
        return False

    module.fast_norm = eps, shift
    module.forward = MethodType(_forward, module)  # a method, so that a copy of the module uses the copy's weight
    return True


def _forward(module: Any, x: Tensor) -> Tensor:
    if x.dtype is torch.float32 is module.weight.dtype:
        return _RmsNorm.apply(x, module.weight, *module.fast_norm)
    return type(module).forward(module, x)


def _close(found: Tensor, expected: Tensor) -> bool:
    return expected.shape == found.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
