"""How rows that lie end to end see each other: not at all; and how a row's branches do: only their common prefix.

Attention alone needs rows apart. `Layout` says for every group of rows of like length where their tokens go in a
(rows x width) grid; `packed_attention` computes attention there and puts the results back end to end. All else in a
model works token by token and never meets padding.

Shapes: N tokens, R rows of a group, T its width, H query heads, K key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface

NAME = "vcllm_packed"
SPREAD, SLACK = 1.2, 8
"""A group's longest row is at most this much longer than its shortest."""
EAGER_WIDTH = 192
"""On a CPU, up to this width plain matrix products beat the fused kernel (`make bench-training` shows both)."""

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Rows of like length."""

    lengths: Lengths
    prefixes: Lengths
    forks: Lengths
    offsets: Lengths
    """Where each row begins among the N tokens."""
    device: torch.device

    @property
    def width(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def is_plain(self) -> bool:
        """Whether no row of the group forks, so that what is to the right of a token is all it may not see."""
        return bool((self.forks == self.lengths).all())

    def gather(self, num_heads: int) -> Tensor:
        """For each (row, head, place) of the grid its (token, head); places past a row's end repeat its first token."""
        place_T = np.arange(self.width)
        token_RT = self.offsets[:, None] + np.where(place_T < self.lengths[:, None], place_T, 0)
        index = token_RT[:, None, :] * num_heads + np.arange(num_heads)[None, :, None]
        return torch.from_numpy(index.reshape(-1)).to(self.device)

    def allowed(self, window: int | None) -> Tensor:
        """Which place (last) each place sees, (R, T, T) or (1, T, T): earlier, in reach, not in the other branch."""
        if self.is_plain:
            place_RT = np.arange(self.width)[None]
            second_RT = np.zeros_like(place_RT, dtype=bool)
            apart_RT = second_RT
        else:
            place_RT = np.broadcast_to(np.arange(self.width), (len(self.lengths), self.width))
            second_RT = place_RT >= self.forks[:, None]
            apart_RT = (place_RT >= self.prefixes[:, None]) & ~second_RT
            place_RT = place_RT - np.where(second_RT, (self.forks - self.prefixes)[:, None], 0)
        distance = place_RT[:, :, None] - place_RT[:, None, :]
        allowed = (distance >= 0) & ~(second_RT[:, :, None] & apart_RT[:, None, :])
        # A place of the first branch is never later than one of the second by index: forbid looking ahead there, too.
        allowed &= ~(apart_RT[:, :, None] & second_RT[:, None, :])
        if window is not None:
            allowed &= distance < window
        return torch.from_numpy(allowed).to(self.device)


class Layout:
    """The groups of a micro-batch, with their indices made on first use and kept for all layers."""

    def __init__(self, lengths: Lengths, prefixes: Lengths, forks: Lengths, device: torch.device) -> None:
        self.device = device
        self.num_tokens = int(lengths.sum())
        offsets = np.cumsum(lengths) - lengths
        self.groups: list[Group] = []
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            longest = lengths[order[start]] * SPREAD + SLACK
            stop = int(np.searchsorted(lengths[order], longest, side="right"))
            rows = order[start:stop]
            self.groups.append(Group(lengths[rows], prefixes[rows], forks[rows], offsets[rows], device))
            start = stop
        self._kept: dict[tuple[Any, ...], Any] = {}

    def gather(self, number: int, num_heads: int) -> Tensor:
        return self._keep(("gather", number, num_heads), lambda: self.groups[number].gather(num_heads))

    def scatter(self, num_heads: int) -> Tensor:
        """For each (token, head) its place in the grids of all groups laid end to end."""
        return self._keep(("scatter", num_heads), lambda: self._scatter(num_heads))

    def bias(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where a place is seen and -inf where not."""

        def make() -> Tensor:
            allowed = self.groups[number].allowed(window)
            return torch.zeros(allowed.shape, dtype=dtype, device=self.device).masked_fill_(~allowed, float("-inf"))

        return self._keep(("bias", number, window, dtype), make)

    def _scatter(self, num_heads: int) -> Tensor:
        index_NH = np.empty((self.num_tokens, num_heads), np.int64)
        start = 0
        for group in self.groups:
            heads_H = np.arange(num_heads)[None] * group.width
            for row, (offset, length) in enumerate(zip(group.offsets, group.lengths, strict=True)):
                first = start + row * num_heads * group.width
                index_NH[offset : offset + length] = first + heads_H + np.arange(length)[:, None]
            start += len(group.lengths) * num_heads * group.width
        return torch.from_numpy(index_NH.reshape(-1)).to(self.device)

    def _keep(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class _ToGrid(torch.autograd.Function):
    """Rows of a matrix into the grid of one group; the way back adds to a matrix that all groups share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: list[Tensor], scatter: Tensor) -> tuple[Tensor, ...]:
        ctx.scatter, ctx.sizes = scatter, [len(index) for index in gather]
        return tuple(x.index_select(0, index) for index in gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        whole = grads[0] if len(grads) == 1 else torch.cat(grads)
        return whole.index_select(0, ctx.scatter), None, None


class _FromGrid(torch.autograd.Function):
    """The grids of all groups back into rows of a matrix; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, scatter: Tensor, *grids: Tensor) -> Tensor:
        whole = grids[0] if len(grids) == 1 else torch.cat(grids)
        ctx.scatter, ctx.sizes = scatter, [len(grid) for grid in grids]
        return whole.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        whole = grad.new_zeros(sum(ctx.sizes), grad.shape[1]).index_copy_(0, ctx.scatter, grad)
        return (None, *whole.split(ctx.sizes))


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of every row by itself: (1, H, N, D) and twice (1, K, N, D) in, (1, N, H, D) out."""
    num_heads, num_keys, head_size = query.shape[1], key.shape[1], query.shape[3]
    scaling = head_size**-0.5 if scaling is None else scaling
    queries, keys, values = (_to_grid(x, layout) for x in (query, key, value))
    grids = []
    for number, group in enumerate(layout.groups):
        rows, width = len(group.lengths), group.width
        q = queries[number].view(rows, num_heads, width, head_size)
        k, v = (x[number].view(rows, num_keys, width, -1) for x in (keys, values))
        window = None if sliding_window is None or sliding_window >= width else sliding_window
        if softcap is not None or (q.device.type == "cpu" and width <= EAGER_WIDTH):
            grid = _eager(q, k, v, layout.bias(number, window, torch.float32), scaling, dropout, softcap)
        else:
            grid = _fused(q, k, v, layout, number, window, scaling, dropout)
        grids.append(grid.reshape(-1, v.shape[3]))
    out = _FromGrid.apply(layout.scatter(num_heads), *grids)
    return out.view(1, layout.num_tokens, num_heads, -1), None


def _to_grid(x: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    num_heads = x.shape[1]
    flat = x.transpose(1, 2).reshape(-1, x.shape[3])
    gather = [layout.gather(number, num_heads) for number in range(len(layout.groups))]
    return _ToGrid.apply(flat, gather, layout.scatter(num_heads))


def _eager(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float, dropout: float, softcap: float | None
) -> Tensor:
    """Heads that share keys are stacked, so that keys are never repeated."""
    rows, num_heads, width, size = q.shape
    num_keys = k.shape[1]
    stacked = q.reshape(rows * num_keys, num_heads // num_keys * width, size)
    turned = k.flatten(0, 1).transpose(1, 2)
    seen = bias[:, None].expand(rows, num_heads, width, width).reshape(rows * num_keys, -1, width)
    if softcap is None:
        scores = torch.baddbmm(seen.to(q.dtype), stacked, turned, alpha=scaling)
    else:
        scores = torch.tanh(torch.bmm(stacked, turned) * (scaling / softcap)) * softcap + seen
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    return torch.bmm(weights, v.flatten(0, 1)).view(rows, num_heads, width, -1)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, number: int, window: int | None, scaling: float, dropout: float
) -> Tensor:
    plain = layout.groups[number].is_plain and window is None
    mask = None if plain else layout.bias(number, window, q.dtype)[:, None]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=plain, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )


AttentionInterface.register(NAME, packed_attention)
