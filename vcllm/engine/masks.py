"""Attention masks over slot caches: a row at position p sees its positions up to p, or a window of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Shapes: B rows, T new positions, L positions in use.


class Masks:
    """Makes the mask argument a model expects; one mask per attention kind where its layers differ."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        kinds = set(getattr(config, "layer_types", None) or ())
        unknown = kinds - {"full_attention", "sliding_attention"}
        if unknown:
            raise ValueError(
                f"Layers of kind {', '.join(sorted(unknown))} are not supported; use plain attention models."
            )
        window = getattr(config, "sliding_window", None)
        self.window = window if window and kinds != {"full_attention"} else None
        self.mixed = "sliding_attention" in kinds
        self.additive = None if config._attn_implementation == "sdpa" else dtype

    def __call__(self, position_BT: Tensor, length: int) -> Tensor | dict[str, Tensor]:
        key_L = torch.arange(length, device=position_BT.device)
        query_B1T1 = position_BT[:, None, :, None]
        full_B1TL = key_L <= query_B1T1
        if self.window is None:
            return self._form(full_B1TL)
        sliding = self._form(full_B1TL & (key_L > query_B1T1 - self.window))
        if not self.mixed:
            return sliding
        return {"full_attention": self._form(full_B1TL), "sliding_attention": sliding}

    def _form(self, seen_B1TL: Tensor) -> Tensor:
        if self.additive is None:
            return seen_B1TL
        hidden = torch.finfo(self.additive).min
        return torch.zeros_like(seen_B1TL, dtype=self.additive).masked_fill_(~seen_B1TL, hidden)
