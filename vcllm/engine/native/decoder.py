"""Llama-shaped models through the compiled forward pass; see decoder.c."""

from __future__ import annotations

from ctypes import CDLL, byref, c_void_p
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from vcllm.engine.angles import Angles
from vcllm.engine.cache import SlotCache
from vcllm.engine.decoder import eps_of
from vcllm.engine.linear import plain
from vcllm.engine.masks import SLIDING, Masks
from vcllm.engine.native import library
from vcllm.engine.native.library import HEAD_DIMS
from vcllm.engine.native.matrix import Matrix

# Shapes: B rows, T new positions, K positions kept, V vocabulary, O outputs, D head size.

ACTIVATIONS = (nn.SiLU, SiLUActivation)
SCRATCH_KEPT = 1 << 24
"""Floats."""


class NativeDecoder:
    """A `Forward` that computes what the model does, in float32 on a CPU.

    It takes the model's weights for itself; `give_back` returns them.
    """

    def __init__(self, model: Any, compiled: CDLL) -> None:
        """TypeError or ValueError where the model is of another shape; it is unchanged then."""
        _check(model)
        body, config = model.model, model.config.get_text_config()
        attention = body.layers[0].self_attn
        self.compiled = compiled
        self.lanes = library.lanes(compiled)
        self.vocab_size: int = model.lm_head.weight.shape[0]
        self.num_kv = attention.k_proj.out_features // attention.head_dim
        self.head_dim: int = attention.head_dim
        self.angles = Angles(body.rotary_emb, body.norm.weight.detach())
        masks = Masks(config)
        is_tied = model.lm_head.weight is body.embed_tokens.weight
        self.matrices: list[Matrix] = []
        self.vectors: list[Tensor] = []
        """Held, because the structures only point at them."""
        layers = [self._layer(layer, masks, kind) for layer, kind in zip(body.layers, masks.kinds, strict=True)]
        embedding = self._matrix(body.embed_tokens)
        head = embedding if is_tied else self._matrix(model.lm_head)
        self.layers = (library.Layer * len(layers))(*layers)
        self.model = library.Model(
            layers=self.layers,
            norm=self._vector(body.norm),
            embedding=embedding,
            head=head,
            num_layers=len(layers),
            hidden=config.hidden_size,
            inner=body.layers[0].mlp.gate_proj.out_features,
            num_q=attention.q_proj.out_features // attention.head_dim,
            num_kv=self.num_kv,
            head_dim=self.head_dim,
            eps=eps_of(body.norm),
            eps_qk=eps_of(attention.q_norm) if getattr(attention, "q_norm", None) is not None else 0.0,
            scale=attention.scaling,
        )
        self._scratch = torch.empty(0)

    def __call__(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        return self._pass(self.model, cache, ids_BT, position_BT, keep_BK)

    def hidden(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        return self._pass(self._headless, cache, ids_BT, position_BT, keep_BK)

    @torch.inference_mode()
    def _pass(
        self, model: library.Model, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor
    ) -> Tensor:
        """What the model's output layer gives, [B, K, O]."""
        ids_BT, position_BT, keep_BK = ids_BT.contiguous(), position_BT.contiguous(), keep_BK.contiguous()
        place_BT, hidden_BT2 = cache.slots.positions_BT.contiguous(), cache.slots.hidden_BT2
        (num_rows, num_new), num_kept = ids_BT.shape, keep_BK.shape[1]
        _check_bounds("token", ids_BT, self.vocab_size)
        _check_bounds("position", position_BT, cache.slots.length)
        _check_bounds("place", place_BT, min(cache.slots.length, cache.slots.num_positions))
        if hidden_BT2 is not None:
            hidden_BT2 = hidden_BT2.contiguous()
            _check_bounds("end of what is hidden", hidden_BT2, cache.slots.length)
        _check_bounds("kept position", keep_BK, num_new)
        if num_rows > cache.slots.num_rows:
            raise IndexError(f"{num_rows} rows, but the cache has room for {cache.slots.num_rows}")
        buffers = cache.buffers(len(self.layers), self.num_kv, self.head_dim, torch.float32)
        pointers = [(c_void_p * len(buffers))(*(each.data_ptr() for each in own)) for own in zip(*buffers, strict=True)]
        cos_CD, sin_CD = self.angles.tables(cache.slots.length)
        panel = 2 * self.lanes
        num_outputs: int = model.head.outputs
        found = torch.empty(num_rows * num_kept, -(-num_outputs // panel) * panel)
        task = library.Pass(
            ids=ids_BT.data_ptr(),
            positions=position_BT.data_ptr(),
            places=place_BT.data_ptr(),
            hidden=None if hidden_BT2 is None else hidden_BT2.data_ptr(),
            keep=keep_BK.data_ptr(),
            num_rows=num_rows,
            num_new=num_new,
            num_kept=num_kept,
            keys=pointers[0],
            values=pointers[1],
            room=buffers[0][0].shape[1],
            cos=cos_CD.data_ptr(),
            sin=sin_CD.data_ptr(),
            logits=found.data_ptr(),
            num_threads=torch.get_num_threads(),
        )
        scratch = self._room(self.compiled.scratch_size(byref(model), byref(task)))
        task.scratch = scratch.data_ptr()
        self.compiled.forward(byref(model), byref(task))
        return found.view(num_rows, num_kept, -1)[..., :num_outputs]

    @cached_property
    def _headless(self) -> library.Model:
        """The model with an output layer that hands on what it gets."""
        same = nn.Linear(self.model.hidden, self.model.hidden, bias=False)
        nn.init.eye_(same.weight)
        headless = library.Model.from_buffer_copy(self.model)
        headless.head = self._matrix(same)
        return headless

    def _room(self, num_floats: int) -> Tensor:
        """To work in. Short passes share it; long ones are rare and have their own."""
        if num_floats > SCRATCH_KEPT:
            return torch.empty(num_floats)
        if num_floats > len(self._scratch):
            self._scratch = torch.empty(num_floats)
        return self._scratch

    def give_back(self) -> None:
        """The model has its weights again."""
        for matrix in self.matrices:
            matrix.give_back()

    def _layer(self, layer: Any, masks: Masks, kind: str) -> library.Layer:
        attention, gated = layer.self_attn, layer.mlp
        return library.Layer(
            norm_in=self._vector(layer.input_layernorm),
            norm_out=self._vector(layer.post_attention_layernorm),
            norm_q=self._vector(getattr(attention, "q_norm", None)),
            norm_k=self._vector(getattr(attention, "k_norm", None)),
            qkv=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            o=self._matrix(attention.o_proj),
            gate_up=self._matrix(gated.gate_proj, gated.up_proj, side_by_side=True),
            down=self._matrix(gated.down_proj),
            window=masks.window or 0 if kind == SLIDING else 0,
        )

    def _matrix(self, *modules: Any, side_by_side: bool = False) -> library.Matrix:
        self.matrices.append(Matrix(modules, self.lanes, side_by_side=side_by_side))
        return self.matrices[-1].struct

    def _vector(self, norm: Any) -> int | None:
        if norm is None:
            return None
        self.vectors.append(norm.weight.detach().contiguous())
        return self.vectors[-1].data_ptr()


def _check_bounds(noun: str, numbers: Tensor, size: int) -> None:
    """IndexError for a number by which C would read or write somewhere else."""
    least, most = (int(number) for number in torch.aminmax(numbers))
    if least < 0 or most >= size:
        raise IndexError(f"{noun} {least if least < 0 else most} is none of {size}")


def _check(model: Any) -> None:
    """TypeError or ValueError for what the compiled pass does not compute."""
    body = model.model
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise TypeError(f"{model.dtype} on {model.device.type}")
    if type(body.embed_tokens) is not nn.Embedding:
        raise TypeError(f"{type(body.embed_tokens).__name__} is no plain embedding")
    is_tied = model.lm_head.weight is body.embed_tokens.weight
    if is_tied and plain(model.lm_head).bias is not None:
        raise ValueError("an output layer with a bias on the weights of the embedding")
    products = [product for layer in body.layers for product in _products(layer)]
    products += [] if is_tied else [plain(model.lm_head)]
    if len({id(product.weight) for product in products}) < len(products):
        raise ValueError("layers that share weights")
    first = body.layers[0].self_attn
    if first.head_dim not in HEAD_DIMS:
        raise ValueError(f"heads of {first.head_dim}")
    shapes = {_shape(layer) for layer in body.layers}
    if len(shapes) > 1:
        raise ValueError("layers of different shapes")
    for layer in body.layers:
        if not isinstance(layer.mlp.act_fn, ACTIVATIONS):
            raise TypeError(f"activation {type(layer.mlp.act_fn).__name__}")
        if {eps_of(layer.input_layernorm), eps_of(layer.post_attention_layernorm)} != {eps_of(body.norm)}:
            raise ValueError("norms of different eps")
        norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(layer.self_attn, name, None)) is not None]
        if norms and ({eps_of(norm) for norm in norms} != {eps_of(first.q_norm)} or len(norms) != 2):
            raise ValueError("queries and keys are normed differently")
        if any(norm.weight.shape != (first.head_dim,) for norm in norms):
            raise ValueError("queries and keys are not normed head by head")


def _products(layer: Any) -> list[Any]:
    """TypeError where one is no plain linear layer."""
    attention, gated = layer.self_attn, layer.mlp
    products = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [plain(product) for product in (*products, gated.gate_proj, gated.up_proj, gated.down_proj)]


def _shape(layer: Any) -> tuple[Any, ...]:
    attention = layer.self_attn
    return (attention.head_dim, attention.scaling, *(tuple(product.weight.shape) for product in _products(layer)))
