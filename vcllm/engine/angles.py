"""Rotary position embeddings: angles by position, whichever way a model stretches them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Shapes: N tokens, C positions of the table, D head size.

FIRST = 12
"""Positions of the table at first."""
Rotation = tuple[Tensor, Tensor]
"""Cosines, and sines with the sign of the half they are for, each [N, 1, D]."""


class Angles:
    """Cosines and sines by position, from the model's own rotary embedding, computed once and looked up."""

    def __init__(self, rotary: Any, like: Tensor) -> None:
        self.rotary = rotary
        self.like = like
        self.cos_CD, self.sin_CD = like.new_empty(0, 0), like.new_empty(0, 0)
        self._grow(FIRST)

    def __call__(self, position_N: Tensor, length: int) -> Rotation:
        """For positions below `length`."""
        cos_CD, sin_CD = self.tables(length)
        return cos_CD[position_N].unsqueeze(1), sin_CD[position_N].unsqueeze(1)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """For `length` positions at least, [C, D] each."""
        if length > len(self.cos_CD):
            self._grow(2 * length)
        return self.cos_CD, self.sin_CD

    def _grow(self, length: int) -> None:
        cos_1CD, sin_1CD = self.rotary(self.like[:1, None], torch.arange(length, device=self.like.device)[None])
        self.cos_CD, self.sin_CD = cos_1CD[0].contiguous(), sin_1CD[0].clone()
        self.sin_CD[:, : self.sin_CD.shape[1] // 2].neg_()
