"""Which way through a model is the fastest that gives the logits of its own code."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from vcllm.engine.cache import SlotCache
from vcllm.engine.decoder import Decoder
from vcllm.engine.forward import Forward, ModelForward
from vcllm.engine.native.decoder import NativeDecoder
from vcllm.engine.native.library import library

# Shapes: B rows, T new positions.

log = logging.getLogger(__name__)

ROPE_KINDS = {"default", "linear", "llama3", "yarn"}
"""Rotations whose angles depend on the position alone."""
ROPE_SETTINGS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("original_max_position_embeddings", "max_position_embeddings"),
}
"""What those rotations are made of; any other setting may change attention at positions that no trial reaches."""
TRIAL_TOKENS = 12
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""By how much the trial's logits may differ, as a share of the largest."""


def forward_of(model: Any, *, own: bool = False) -> Forward:
    """The fastest way through this model; its own code where no other gives the same logits.

    own: nothing else uses the model from now on, so its weights may be moved; it can no longer be called then.
    """
    usual = ModelForward(model)
    parts = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's alone have one
    try:
        _check_rotation(model)
        ids_BT = _trial_ids(model)
        expected = _trial(usual, ids_BT)
        fast = Decoder(parts, own=False)
        if not _close(_trial(fast, ids_BT), expected):
            raise ValueError("its logits are others than the decoder's")
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as reason:
        log.info("%s runs by its own code: %s.", type(parts).__name__, reason)
        return usual
    if not own:
        return fast
    del fast  # it would keep every weight in memory while the new layouts are made
    return _compiled(parts, ids_BT, expected) or Decoder(parts, own=True)


def _compiled(model: Any, ids_BT: Tensor, expected: Tensor) -> Forward | None:
    """Through the compiled pass, where there is one for this processor and model."""
    if (compiled := library()) is None:
        return None
    try:
        native = NativeDecoder(model, compiled)
    except (TypeError, ValueError) as reason:
        log.info("%s is not for the compiled forward pass: %s.", type(model).__name__, reason)
        return None
    if _close(_trial(native, ids_BT), expected):
        return native
    log.warning("The compiled forward pass gives other logits than %s; it is not used.", type(model).__name__)
    native.give_back()
    return None


def _check_rotation(model: Any) -> None:
    """ValueError where angles may depend on more than the position."""
    settings = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kind, unknown = settings.get("rope_type", "default"), settings.keys() - ROPE_SETTINGS
    if kind not in ROPE_KINDS or unknown:
        raise ValueError(f"rotation of kind {kind} with {', '.join(sorted(unknown)) or 'the usual settings'}")


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE[expected.dtype] * expected.abs().max())


def _trial_ids(model: Any) -> Tensor:
    """Two short rows."""
    size = model.config.get_text_config().vocab_size
    return torch.arange(1, 2 * TRIAL_TOKENS + 1, device=model.device).mul_(7919).remainder_(size).view(2, -1)


@torch.inference_mode()
def _trial(forward: Forward, ids_BT: Tensor) -> Tensor:
    """Logits behind a first half that is read at once and then token by token."""
    cache, logits = SlotCache(), []
    cache.reserve(*ids_BT.shape)
    half = ids_BT.shape[1] // 2
    for start, end in ((0, half), *((at, at + 1) for at in range(half, ids_BT.shape[1]))):
        position_BT = torch.arange(start, end, device=ids_BT.device).expand(len(ids_BT), -1)
        cache.aim(position_BT, end)
        keep_BK = torch.full((len(ids_BT), 1), end - start - 1, device=ids_BT.device)
        logits.append(forward(cache, ids_BT[:, start:end], position_BT, keep_BK))
    return torch.cat(logits, 1)
