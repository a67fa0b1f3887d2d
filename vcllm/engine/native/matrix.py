"""Weights in the order in which the compiled forward pass reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcllm.engine.linear import plain
from vcllm.engine.native import library

ROWS_COMPARED = 4096
"""At a time, so that the largest matrix needs little beside itself, and most others end after the first."""

# Shapes: O outputs of all modules together, I inputs, P panels, H halves of one, L lanes, S outputs of a module in it.


class Matrix:
    """The weights of some modules as one matrix, moved here from them."""

    def __init__(self, modules: Sequence[Any], lanes: int, *, side_by_side: bool = False) -> None:
        """side_by_side: each panel holds as many outputs of every module, otherwise one module follows the other.

        TypeError where one is no plain linear layer.
        """
        self.modules = [module if type(module) is nn.Embedding else plain(module) for module in modules]
        self.lanes, self.panel = lanes, 2 * lanes
        self.share = lanes if side_by_side else self.panel
        self.sizes = [len(module.weight) for module in self.modules]
        self.dtype = self.modules[0].weight.dtype
        weights_OI = self._grouped([module.weight.detach() for module in self.modules])
        self.panels_PIO = _panels(_smallest(weights_OI), lanes)
        del weights_OI
        self.bias_O = self._bias()
        for module in self.modules:
            module.weight.data = module.weight.new_empty(0)

    def give_back(self) -> None:
        """Put the weights where they came from; this is of no use any more."""
        weights_OI = _rows(self.panels_PIO, self.lanes).to(self.dtype)
        if self.share == self.lanes:
            groups_PMSI = weights_OI.view(-1, len(self.modules), self.lanes, weights_OI.shape[1])
            parts = [group.reshape(-1, weights_OI.shape[1]) for group in groups_PMSI.unbind(1)]
        else:
            parts = list(weights_OI[: sum(self.sizes)].split(self.sizes))
        for module, part, size in zip(self.modules, parts, self.sizes, strict=True):
            module.weight.data = part[:size].clone()

    @property
    def outputs(self) -> int:
        """Without padding, where the modules follow one another."""
        return sum(self.sizes) if self.share == self.panel else len(self.panels_PIO) * self.panel

    @property
    def struct(self) -> library.Matrix:
        """Valid as long as this matrix is."""
        return library.Matrix(
            panels=self.panels_PIO.data_ptr(),
            bias=None if self.bias_O is None else self.bias_O.data_ptr(),
            inputs=self.panels_PIO.shape[1],
            outputs=self.outputs,
            is_half=self.panels_PIO.dtype == torch.bfloat16,
        )

    def _bias(self) -> Tensor | None:
        biases = [getattr(module, "bias", None) for module in self.modules]
        if all(bias is None for bias in biases):
            return None
        like = next(bias for bias in biases if bias is not None)
        whole = [like.new_zeros(size) if bias is None else bias for bias, size in zip(biases, self.sizes, strict=True)]
        return self._grouped([bias.detach()[:, None] for bias in whole])[:, 0].contiguous()

    def _grouped(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all parts in the order of the panels, padded with zeros."""
        if self.share == self.panel:
            return _padded(torch.cat(list(parts)) if len(parts) > 1 else parts[0], self.panel)
        padded = [_padded(part, self.lanes).view(-1, self.lanes, part.shape[1]) for part in parts]
        return torch.stack(padded, 1).view(-1, parts[0].shape[1])


def _panels(weights_OI: Tensor, lanes: int) -> Tensor:
    """[P, I, 2 * L]; numbers of half the size lie in pairs, one of each half of a panel, to be parted by shifts."""
    panels_PHLI = weights_OI.view(-1, 2, lanes, weights_OI.shape[1])
    order = (0, 3, 2, 1) if weights_OI.dtype == torch.bfloat16 else (0, 3, 1, 2)
    return panels_PHLI.permute(order).reshape(len(panels_PHLI), -1, 2 * lanes).contiguous()


def _rows(panels_PIO: Tensor, lanes: int) -> Tensor:
    """What `_panels` was given."""
    num_panels, num_inputs, _ = panels_PIO.shape
    is_half = panels_PIO.dtype == torch.bfloat16
    shape = (lanes, 2) if is_half else (2, lanes)
    order = (0, 3, 2, 1) if is_half else (0, 2, 3, 1)
    return panels_PIO.view(num_panels, num_inputs, *shape).permute(order).reshape(-1, num_inputs)


def _padded(rows: Tensor, step: int) -> Tensor:
    missing = -len(rows) % step
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _smallest(weights_OI: Tensor) -> Tensor:
    """In bfloat16 where every number has one there, as those of most published models do."""
    lossless = all(piece.bfloat16().to(piece.dtype).equal(piece) for piece in weights_OI.split(ROWS_COMPARED))
    return weights_OI.bfloat16() if lossless else weights_OI
