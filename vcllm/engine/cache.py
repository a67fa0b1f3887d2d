"""Keys and values of the live rows, for any causal model that speaks the `Cache` interface of transformers.

One buffer per layer holds row r's position p at [r, p]. Rows therefore join, leave and grow without touching
one another: nothing is padded on the left or concatenated per step. What lies behind a row's length is
rubbish, which the caller's attention mask hides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Shapes: R rows and C positions there is room for, B rows in use, T new positions, L positions in use,
# H key-value heads, D head size.

Block = list[tuple[Tensor, Tensor]]
"""Keys and values [T, H, D] of each layer, for some positions of one row."""

ROWS_STEP = 32
POSITIONS_STEP = 64


class Slots:
    """Where the coming forward pass reads and writes; shared by all layers."""

    num_rows = 0
    num_positions = 0
    rows_B1: Tensor
    positions_BT: Tensor
    span: slice | None = None
    """The new positions where they are the same for all rows: a plain copy, which costs a tenth of a scatter."""
    length = 0
    hidden_BT2: Tensor | None = None
    """Places from and up to which a new position sees nothing: those of other continuations of the same beginning."""


class SlotLayer(CacheLayerMixin):
    """The keys and values of one layer, [R, C, H, D]."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._room(key_states.transpose(1, 2))
        self.values = self._room(value_states.transpose(1, 2))
        self.is_initialized = True

    def _room(self, like_BTHD: Tensor) -> Tensor:
        # Zeros, not empty: rubbish that happens to be NaN would survive the mask as 0 * NaN.
        return like_BTHD.new_zeros(self.slots.num_rows, self.slots.num_positions, *like_BTHD.shape[2:])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions; hand out every position in use as [B, H, L, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        slots, num_rows = self.slots, key_states.shape[0]
        new = (slice(num_rows), slots.span) if slots.span else (slots.rows_B1, slots.positions_BT)
        self.keys[new], self.values[new] = key_states.transpose(1, 2), value_states.transpose(1, 2)
        keys_BLHD, values_BLHD = self.keys[:num_rows, : slots.length], self.values[:num_rows, : slots.length]
        return keys_BLHD.transpose(1, 2), values_BLHD.transpose(1, 2)

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values = change(self.keys), change(self.values)

    def get_seq_length(self) -> int:
        return 0  # positions and masks are always given, so no model needs to ask

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.length, 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The cache of one batch."""

    def __init__(self) -> None:
        self.slots = Slots()
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.slots))  # type: ignore[arg-type]
        self.layers: list[Any]

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Make room for so many rows and positions, and no more than that; what is within them stays."""
        slots = self.slots
        if num_rows <= slots.num_rows and num_positions <= slots.num_positions:
            return
        slots.num_rows, slots.num_positions = num_rows, num_positions
        for layer in self.layers:
            layer.each(partial(_resized, slots=slots))

    def aim(
        self, positions_BT: Tensor, length: int, span: slice | None = None, hidden_BT2: Tensor | None = None
    ) -> None:
        """The coming pass writes row b at `positions_BT[b]` and attends to the first `length` positions.

        span: those positions, where they follow one another and are the same for all rows.
        hidden_BT2: a range that each new position skips; what lies in front of it counts as that much nearer.
        """
        self.slots.span = span
        self.slots.hidden_BT2 = hidden_BT2
        self.slots.rows_B1 = torch.arange(len(positions_BT), device=positions_BT.device)[:, None]
        self.slots.positions_BT = positions_BT
        self.slots.length = length

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy rows over the rows that left."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[targets, :length] = buffer[sources, :length]

    def join(self, other: SlotCache, rows: list[int], at: int) -> None:
        """Append copies of `other`'s rows (each as often as it is named) behind the first `at` rows."""
        length = other.slots.length
        for mine, theirs in zip(self._like(other), other.layers, strict=True):
            mine.keys[at : at + len(rows), :length] = theirs.keys[rows, :length]
            mine.values[at : at + len(rows), :length] = theirs.values[rows, :length]

    def buffers(self, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> Block:
        """Keys and values [R, C, H, D] of every layer, to be read and written in place."""
        while len(self.layers) < num_layers:
            like_BTHD = torch.empty(0, 0, num_heads, head_dim, dtype=dtype)
            self._add_layer(like_BTHD, like_BTHD)
        return [(layer.keys, layer.values) for layer in self.layers]

    def read(self, row: int, positions: slice) -> Block:
        """Copies of what a row holds there."""
        return [(layer.keys[row, positions].clone(), layer.values[row, positions].clone()) for layer in self.layers]

    def begin(self, rows: Sequence[Sequence[Block]]) -> None:
        """Write each row's blocks one behind the other, from its first position on."""
        for row, blocks in enumerate(rows):
            at = 0
            for block in blocks:
                self._write(row, at, block)
                at += len(block[0][0])

    def _write(self, row: int, at: int, block: Block) -> None:
        for index, (keys, values) in enumerate(block):
            if index == len(self.layers):
                self._add_layer(keys[None], values[None])
            self.layers[index].keys[row, at : at + len(keys)] = keys
            self.layers[index].values[row, at : at + len(values)] = values

    def _like(self, other: SlotCache) -> list[Any]:
        while len(self.layers) < len(other.layers):
            theirs = other.layers[len(self.layers)]
            self._add_layer(theirs.keys, theirs.values)
        return self.layers

    def _add_layer(self, keys_BTHD: Tensor, values_BTHD: Tensor) -> None:
        """Empty, for keys and values like these."""
        self.layers.append(SlotLayer(self.slots))
        self.layers[-1].lazy_initialization(keys_BTHD.transpose(1, 2), values_BTHD.transpose(1, 2))

    def release(self) -> None:
        """Give the memory back."""
        self.layers = []
        self.slots.num_rows = self.slots.num_positions = 0


def roomy(num_rows: int, num_positions: int) -> tuple[int, int]:
    """A little more than is needed, so that growth copies stay rare and the waste small."""
    rows = 1 << (num_rows - 1).bit_length() if num_rows < ROWS_STEP else _up_to_multiple(num_rows, ROWS_STEP)
    return rows, _up_to_multiple(num_positions, POSITIONS_STEP)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """What one position of one row takes in the cache, over all layers."""
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * num_heads * head_dim * dtype.itemsize)


def _up_to_multiple(number: int, step: int) -> int:
    return -(-number // step) * step


def _resized(buffer: Tensor, slots: Slots) -> Tensor:
    """Either side may have shrunk: a batch of many short rows gives way to one of few long ones."""
    other = buffer.new_zeros(slots.num_rows, slots.num_positions, *buffer.shape[2:])
    kept = buffer[: slots.num_rows, : slots.num_positions]
    other[: kept.shape[0], : kept.shape[1]] = kept
    return other
