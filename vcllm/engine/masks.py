"""Attention masks over slot caches: a row at position p sees its positions up to p, or some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vcllm.engine.cache import Slots

# Shapes: B rows, T new positions, L positions in use.

FULL, SLIDING = "full_attention", "sliding_attention"
"""What configurations call the kinds of attention."""


class Masks:
    """Makes masks for each kind of attention that a model's layers have."""

    def __init__(self, config: Any, additive: torch.dtype | None = None) -> None:
        """additive: what is hidden gets the lowest number of this type, the rest 0; None: booleans, True is seen."""
        listed = getattr(config, "layer_types", None)
        unknown = set(listed or ()) - {FULL, SLIDING}
        if unknown:
            raise ValueError(
                f"Layers of kind {', '.join(sorted(unknown))} are not supported; use plain attention models."
            )
        window = getattr(config, "sliding_window", None)
        self.kinds: list[str] = list(listed or [SLIDING if window else FULL] * config.num_hidden_layers)
        """Of each layer."""
        self.window = window if SLIDING in self.kinds else None
        self.additive = additive

    def __call__(self, slots: Slots) -> dict[str, Tensor]:
        """A mask [B, 1, T, L] for each kind there is."""
        key_L = torch.arange(slots.length, device=slots.positions_BT.device)
        distance_B1TL = slots.positions_BT[:, None, :, None] - key_L
        seen_B1TL = distance_B1TL >= 0
        if slots.hidden_BT2 is not None:
            start_B1T1, end_B1T1 = slots.hidden_BT2[:, None, :, None].unbind(-1)
            seen_B1TL = seen_B1TL & ((key_L < start_B1T1) | (key_L >= end_B1T1))
            distance_B1TL = distance_B1TL - (end_B1T1 - start_B1T1) * (key_L < start_B1T1)
        masks = {}
        if FULL in self.kinds:
            masks[FULL] = self._form(seen_B1TL)
        if self.window is not None:
            masks[SLIDING] = self._form(seen_B1TL & (distance_B1TL < self.window))
        return masks

    def _form(self, seen_B1TL: Tensor) -> Tensor:
        if self.additive is None:
            return seen_B1TL
        hidden = torch.finfo(self.additive).min
        return torch.zeros_like(seen_B1TL, dtype=self.additive).masked_fill_(~seen_B1TL, hidden)
