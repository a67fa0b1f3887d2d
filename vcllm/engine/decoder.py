"""The forward pass of Llama-shaped models in few, large operations.

With small models or few rows, what a step costs is the number of its operations, and on a CPU how the weights lie in
memory. Here a layer takes a fraction of the operations of the model's own code: queries, keys and values come from one
product, as do both inputs of the gated unit, and all heads are normed and rotated at once. Knows the shape of a layer,
not the name of a family: a model is taken when its parts are found and a trial gives the logits of its own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcllm.engine.angles import Angles, Rotation
from vcllm.engine.cache import SlotCache
from vcllm.engine.linear import Linear, join, placed
from vcllm.engine.masks import Masks

# Shapes: B rows, T new positions, N = B * T, L positions in use, K positions kept, E hidden size, V vocabulary,
# H query heads, G key-value heads, D head size.

LARGEST_COPY = 1 << 26
"""Bytes of an output layer that may be held a second time in its fast layout, where it is also the embedding."""


class Decoder:
    """A `Forward` that computes what the model does."""

    def __init__(self, model: Any, *, own: bool) -> None:
        """own: nothing else uses the model from now on, so its weights may be moved; it can no longer be called."""
        body, config = model.model, model.config.get_text_config()
        if type(body.embed_tokens) is not nn.Embedding:
            raise TypeError(f"{type(body.embed_tokens).__name__} is no plain embedding")
        self.masks = Masks(config, model.dtype)
        self.embedding_VE: Tensor = body.embed_tokens.weight.detach()
        self.head = _head(model, own=own)
        self.norm = Norm(body.norm)
        self.layers = [Layer(layer, own=own) for layer in body.layers]
        self.angles = Angles(body.rotary_emb, self.embedding_VE)

    def __call__(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        return self.head(self._last(cache, ids_BT, position_BT, keep_BK)).view(*keep_BK.shape, -1)

    def hidden(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        return self._last(cache, ids_BT, position_BT, keep_BK).view(*keep_BK.shape, -1)

    def _last(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        """The last hidden states that are kept, [B * K, E]."""
        num_rows, num_new = ids_BT.shape
        sees_all = num_rows == num_new == 1 and self.masks.window is None and cache.slots.hidden_BT2 is None
        masks = {} if sees_all else self.masks(cache.slots)
        rotation = self.angles(position_BT.flatten(), cache.slots.length)
        x_NE = F.embedding(ids_BT.flatten(), self.embedding_VE)
        for index, layer in enumerate(self.layers):
            x_NE = layer(x_NE, num_rows, cache, index, rotation, masks.get(self.masks.kinds[index]))
        if num_new > 1:
            first_B1 = torch.arange(num_rows, device=keep_BK.device)[:, None] * num_new
            x_NE = x_NE[(first_B1 + keep_BK).flatten()]
        return self.norm(x_NE)


class Norm:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight.detach()
        self.eps = eps_of(module)
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


def eps_of(norm: Any) -> float:
    """By whichever name a norm has it."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


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
