"""A model as the engine sees it: tokens and their places in, logits out; keys and values go into a slot cache."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from vcllm.engine.cache import SlotCache
from vcllm.engine.masks import Masks

# Shapes: B rows, T new positions, K of them kept, V vocabulary, E hidden size.


class Forward(Protocol):
    """One forward pass. The cache has been aimed at the positions (`SlotCache.aim`)."""

    def __call__(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        """Logits [B, K, V] at `keep_BK`, which counts the new positions of each row from 0."""
        ...

    def hidden(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        """The last hidden states [B, K, E] there, of which the output layer would make the logits."""
        ...


class ModelForward:
    """By the model's own code, whatever its architecture."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.masks = Masks(config, None if config._attn_implementation == "sdpa" else model.dtype)
        self.by_kind = getattr(config, "layer_types", None) is not None and self.masks.window is not None
        """Whether the model wants a mask for each kind of attention, by name."""

    def __call__(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        logits_BKV: Tensor = self.model(**self._inputs(cache, ids_BT, position_BT), logits_to_keep=keep_BK).logits
        return logits_BKV

    def hidden(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        states_BTE: Tensor = body_of(self.model)(**self._inputs(cache, ids_BT, position_BT)).last_hidden_state
        return states_BTE.take_along_dim(keep_BK[..., None], 1)

    def _inputs(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor) -> dict[str, Any]:
        masks = self.masks(cache.slots)
        return {
            "input_ids": ids_BT,
            "position_ids": position_BT,
            "attention_mask": masks if self.by_kind else next(iter(masks.values())),
            "past_key_values": cache,
            "use_cache": True,
        }


def body_of(model: Any) -> Any:
    """A model of transformers without its output layer; an adapter's stays in it."""
    parts = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's alone have one
    return parts.base_model
