"""The forward pass of Llama-shaped models in few, large operations.

With small models or few rows, what a step costs is the number of its operations, and on a CPU how the weights lie in
memory. Here a layer takes a fraction of the operations of the model's own code: queries, keys and values come from one
product, as do both inputs of the gated unit, and all heads are normed and rotated at once. Knows the shape of a layer,
not the name of a family: a model is taken when its parts are found and a trial gives the logits of its own code.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vcllm.engine.cache import SlotCache
from vcllm.engine.forward import Forward, ModelForward
from vcllm.engine.linear import Linear, join, placed
from vcllm.engine.masks import Masks

# Shapes: B rows, T new positions, N = B * T, L positions in use, K positions kept, E hidden size, V vocabulary,
# H query heads, G key-value heads, D head size.

log = logging.getLogger(__name__)

ROPE_KINDS = {"default", "linear", "llama3", "yarn"}
"""Rotations whose angles depend on the position alone."""
TRIAL_TOKENS = 12
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""By how much the trial's logits may differ, as a share of the largest."""
LARGEST_COPY = 1 << 26
"""Bytes of an output layer that may be held a second time in its fast layout, where it is also the embedding."""

Rotation = tuple[Tensor, Tensor]
"""Cosines, and sines with the sign of the half they are for, each [N, 1, D]."""


class Decoder:
    """A `Forward` that computes what the model does."""

    def __init__(self, model: Any, *, own: bool) -> None:
        """own: nothing else uses the model from now on, so its weights may be moved; it can no longer be called."""
        body, config = model.model, model.config.get_text_config()
        self.masks = Masks(config, model.dtype)
        self.embedding_VE: Tensor = body.embed_tokens.weight.detach()
        self.head = _head(model, own=own)
        self.norm = Norm(body.norm)
        self.layers = [Layer(layer, own=own) for layer in body.layers]
        self.angles = Angles(body.rotary_emb, self.embedding_VE)

    def __call__(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        num_rows, num_new = ids_BT.shape
        alone = num_rows == num_new == 1 and self.masks.window is None  # it may look at everything there is
        masks = {} if alone else self.masks(position_BT, cache.slots.length)
        rotation = self.angles(position_BT.flatten(), cache.slots.length)
        x_NE = F.embedding(ids_BT.flatten(), self.embedding_VE)
        for index, layer in enumerate(self.layers):
            x_NE = layer(x_NE, num_rows, cache, index, rotation, masks.get(self.masks.kinds[index]))
        if num_new > 1:
            first_B1 = torch.arange(num_rows, device=keep_BK.device)[:, None] * num_new
            x_NE = x_NE[(first_B1 + keep_BK).flatten()]
        return self.head(self.norm(x_NE)).view(num_rows, keep_BK.shape[1], -1)


class Norm:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight.detach()
        self.eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        self.dtype = self.weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (wide * scale).to(self.dtype).mul_(self.weight)


class Layer:
    """Attention, then the gated unit; each works on a normed copy of what it adds to."""

    def __init__(self, layer: Any, *, own: bool) -> None:
        attention, gated = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scaling
        self.num_q, self.num_kv = (p.out_features // self.head_dim for p in (attention.q_proj, attention.k_proj))
        self.norm_qk = _norm_qk(attention, self.num_q, self.num_kv)
        self.norm_in, self.norm_out = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.qkv = join([attention.q_proj, attention.k_proj, attention.v_proj], own=own)
        self.o = join([attention.o_proj], own=own)
        self.gate_up = join([gated.gate_proj, gated.up_proj], own=own)
        self.down = join([gated.down_proj], own=own)
        self.activation = gated.act_fn

    def __call__(
        self, x_NE: Tensor, num_rows: int, cache: SlotCache, index: int, rotation: Rotation, mask_B1TL: Tensor | None
    ) -> Tensor:
        heads_NxD = self.qkv(self.norm_in(x_NE)).view(len(x_NE), -1, self.head_dim)
        qk_NxD, v_NGD = heads_NxD.split([self.num_q + self.num_kv, self.num_kv], 1)
        qk_NxD = _rotated(qk_NxD if self.norm_qk is None else self.norm_qk(qk_NxD), rotation)
        q_NHD, k_NGD = qk_NxD.split([self.num_q, self.num_kv], 1)
        keys, values = cache.update(_by_row(k_NGD, num_rows), _by_row(v_NGD, num_rows), index)
        x_NE = x_NE + self.o(self._attend(q_NHD, keys, values, mask_B1TL))
        gate, up = self.gate_up(self.norm_out(x_NE)).chunk(2, -1)
        return x_NE + self.down(self.activation(gate) * up)

    def _attend(self, q_NHD: Tensor, keys_BGLD: Tensor, values_BGLD: Tensor, mask_B1TL: Tensor | None) -> Tensor:
        num_rows = len(keys_BGLD)
        if len(q_NHD) == num_rows:  # one position each: the heads that share keys are taken for positions
            q = q_NHD.view(num_rows, self.num_kv, -1, self.head_dim)
            out = F.scaled_dot_product_attention(q, keys_BGLD, values_BGLD, mask_B1TL, scale=self.scale)
            return out.reshape(num_rows, -1)
        q = _by_row(q_NHD, num_rows)
        out = F.scaled_dot_product_attention(
            q, keys_BGLD, values_BGLD, mask_B1TL, scale=self.scale, enable_gqa=self.num_q != self.num_kv
        )
        return out.transpose(1, 2).reshape(len(q_NHD), -1)


class Angles:
    """Cosines and sines by position, from the model's own rotary embedding, computed once and looked up."""

    def __init__(self, rotary: Any, like: Tensor) -> None:
        self.rotary = rotary
        self.like = like
        self.cos_CD, self.sin_CD = like.new_empty(0, 0), like.new_empty(0, 0)
        self._grow(TRIAL_TOKENS)

    def __call__(self, position_N: Tensor, length: int) -> Rotation:
        """For positions below `length`."""
        if length > len(self.cos_CD):
            self._grow(2 * length)
        return self.cos_CD[position_N].unsqueeze(1), self.sin_CD[position_N].unsqueeze(1)

    def _grow(self, length: int) -> None:
        cos_1CD, sin_1CD = self.rotary(self.like[:1, None], torch.arange(length, device=self.like.device)[None])
        self.cos_CD, self.sin_CD = cos_1CD[0], sin_1CD[0].clone()
        self.sin_CD[:, : self.sin_CD.shape[1] // 2].neg_()


def forward_of(model: Any, *, own: bool = False) -> Forward:
    """The fastest way through this model: a `Decoder` where it gives the same logits, otherwise the model's own code.

    own: as for `Decoder`; the logits are compared before any weight is moved.
    """
    usual = ModelForward(model)
    try:
        fast: Forward | None = Decoder(model, own=False) if _depends_on_position_alone(model) else None
        if fast is not None and not _same(fast, usual, model):
            fast = None
    except (AttributeError, TypeError, ValueError, RuntimeError) as reason:
        log.info("%s runs by its own code: %s.", type(model).__name__, reason)
        fast = None
    if fast is None:
        return usual
    return Decoder(model, own=True) if own else fast


def _depends_on_position_alone(model: Any) -> bool:
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return parameters.get("rope_type", "default") in ROPE_KINDS


@torch.inference_mode()
def _same(one: Forward, other: Forward, model: Any) -> bool:
    """Whether both give the same logits for two short rows, read at once and then token by token."""
    size = model.config.get_text_config().vocab_size
    ids_BT = torch.arange(1, 2 * TRIAL_TOKENS + 1, device=model.device).mul_(7919).remainder_(size).view(2, -1)
    found, expected = _trial(one, ids_BT), _trial(other, ids_BT)
    return bool((found - expected).abs().max() <= CLOSE[model.dtype] * expected.abs().max())


def _trial(forward: Forward, ids_BT: Tensor) -> Tensor:
    cache, logits = SlotCache(), []
    cache.reserve(*ids_BT.shape)
    half = ids_BT.shape[1] // 2
    for start, end in ((0, half), *((at, at + 1) for at in range(half, ids_BT.shape[1]))):
        position_BT = torch.arange(start, end, device=ids_BT.device).expand(len(ids_BT), -1)
        cache.aim(position_BT, end)
        keep_BK = torch.full((len(ids_BT), 1), end - start - 1, device=ids_BT.device)
        logits.append(forward(cache, ids_BT[:, start:end], position_BT, keep_BK).float())
    return torch.cat(logits, 1)


def _head(model: Any, *, own: bool) -> Linear:
    weight_VE = model.lm_head.weight.detach()
    is_embedding = weight_VE.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    if own and is_embedding and weight_VE.nbytes <= LARGEST_COPY:
        return placed(weight_VE, model.lm_head.bias)
    return join([model.lm_head], own=own and not is_embedding)


def _norm_qk(attention: Any, num_q: int, num_kv: int) -> Norm | None:
    """The norms of queries and keys, as one norm of their heads together."""
    if getattr(attention, "q_norm", None) is None:
        return None
    both, k_norm = Norm(attention.q_norm), Norm(attention.k_norm)
    if both.eps != k_norm.eps or both.weight.shape != k_norm.weight.shape:
        raise ValueError("queries and keys are normed differently")
    both.weight = torch.cat([both.weight.expand(num_q, -1), k_norm.weight.expand(num_kv, -1)])
    return both


def _by_row(x_NHD: Tensor, num_rows: int) -> Tensor:
    """[B, H, T, D]"""
    return x_NHD.view(num_rows, -1, *x_NHD.shape[1:]).transpose(1, 2)


def _rotated(x_NHD: Tensor, rotation: Rotation) -> Tensor:
    """x cos + (-x2, x1) sin, for the halves x1 and x2 of each head (Su et al. 2021, eq. 34)."""
    cos_N1D, sin_N1D = rotation
    return torch.addcmul(x_NHD * cos_N1D, x_NHD.roll(x_NHD.shape[-1] // 2, -1), sin_N1D)
