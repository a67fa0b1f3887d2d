"""Linear maps as the decoder uses them: several of the model's joined into one product, laid out for the processor.

oneDNN multiplies a few rows by a weight in a layout of its own nearly twice as fast as by the plain one; the plain one
is then let go. Adapters stay apart from the weights they sit on, which other adapters share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: N rows, I inputs, O outputs, R rank of an adapter.

ROWS_HINT = 8
"""Rows that oneDNN chooses its layout for; measured to serve 1 to 512 rows as well as their own."""


class Linear(Protocol):
    """[N, I] to [N, O]."""

    def __call__(self, x_NI: Tensor) -> Tensor: ...


class Plain:
    """With weights as the model has them."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.weight_OI = weight_OI
        self.bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        return F.linear(x_NI, self.weight_OI, self.bias_O)


class Packed:
    """With a copy of the weights in oneDNN's layout."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), ROWS_HINT)
        self.bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias_O, "none", [], "")
        return out


class Adapted:
    """A linear map and low-rank additions to it (Hu et al. 2021, eq. 3)."""

    def __init__(self, base: Linear, module: Any) -> None:
        self.base = base
        self.parts = [
            (module.lora_A[name].weight, module.lora_B[name].weight * module.scaling[name])
            for name in module.active_adapters
            if name in module.lora_A
        ]

    def __call__(self, x_NI: Tensor) -> Tensor:
        out_NO = self.base(x_NI)
        for down_RI, up_OR in self.parts:
            out_NO = out_NO.addmm(F.linear(x_NI, down_RI), up_OR.t())
        return out_NO


class Beside:
    """Several maps of one input, their outputs side by side."""

    def __init__(self, maps: Sequence[Linear]) -> None:
        self.maps = maps

    def __call__(self, x_NI: Tensor) -> Tensor:
        return torch.cat([each(x_NI) for each in self.maps], -1)


def join(modules: Sequence[Any], *, own: bool) -> Linear:
    """One map whose outputs are those of all modules, in their order; TypeError where one is no plain linear layer.

    own: nothing but the map uses the modules from now on, so their weights may be moved; they can no longer be called.
    """
    if not own or any(hasattr(module, "lora_A") for module in modules):
        maps = [_as_it_is(module) for module in modules]
        return maps[0] if len(maps) == 1 else Beside(maps)
    weights = [plain(module).weight for module in modules]
    weight_OI = torch.cat([weight.detach() for weight in weights]) if len(weights) > 1 else weights[0].detach()
    for weight in weights:
        weight.data = weight.new_empty(0)
    return placed(weight_OI, _biases(modules))


def placed(weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
    """The map in the layout that is fastest where the weight is."""
    return Packed(weight_OI, bias_O) if _packs(weight_OI) else Plain(weight_OI, bias_O)


def plain(module: Any) -> Any:
    """The module itself; TypeError where it is no plain linear layer."""
    if type(module) is not nn.Linear:
        raise TypeError(f"{type(module).__name__} is no plain linear layer")
    return module


def _packs(weight: Tensor) -> bool:
    known = weight.dtype in (torch.float32, torch.bfloat16)
    return weight.device.type == "cpu" and known and torch.backends.mkldnn.is_available()


def _as_it_is(module: Any) -> Linear:
    if not hasattr(module, "lora_A"):
        module = plain(module)
        return Plain(module.weight.detach(), module.bias)
    if module.merged or module.lora_variant:
        raise TypeError("an adapter of another kind than plain LoRA")
    return Adapted(_as_it_is(module.base_layer), module)


def _biases(modules: Sequence[Any]) -> Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    return torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias.detach() for m in modules])
