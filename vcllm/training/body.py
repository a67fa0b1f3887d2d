"""Hidden states of a micro-batch: packed where the model's attention can be told apart by row, else padded.

Which of the two, is tried out on a few rows before training, not looked up in a list of families.

Shapes: N tokens, S sequences, T positions of the longest, H hidden size.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcllm.training.batches import Batch, make_batch
from vcllm.training.corpus import Corpus
from vcllm.training.layout import NAME

log = logging.getLogger(__name__)

PROBE_ROWS = 4


class Packed:
    """Rows end to end, apart in attention only; branches share their prefix."""

    name = "packed"
    spread = math.inf
    """How many times longer than another a row of a micro-batch may be."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def __call__(self, batch: Batch) -> Tensor:
        body = self.core.base_model
        ids, position = batch.ids_N[None], batch.position_N[None]
        return body(input_ids=ids, position_ids=position, use_cache=False, layout=batch.layout)[0][0]


class Padded:
    """Every sequence a row of its own, prefixes repeated: slower, and right for any causal model."""

    name = "padded"
    spread = 2.0
    """The same; what is shorter than the longest costs as much."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states in the packed order; a shared prefix takes those of the first branch."""
        token_ST, seen_ST, home_N = unroll(batch)
        hidden_STH = self.core.base_model(
            input_ids=batch.ids_N[token_ST], attention_mask=seen_ST.long(), use_cache=False
        )[0]
        return hidden_STH.flatten(0, 1).index_select(0, home_N)


def unroll(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """For every sequence its tokens among the N (S, T), which are real (S, T), and where each of the N lies (N)."""
    sequences: list[np.ndarray[Any, Any]] = []
    for group in batch.layout.groups:
        for length, prefix, fork, offset in zip(group.lengths, group.prefixes, group.forks, group.offsets, strict=True):
            sequences.append(offset + np.arange(fork))
            if fork < length:
                sequences.append(offset + np.concatenate([np.arange(prefix), np.arange(fork, length)]))
    width = max(len(sequence) for sequence in sequences)
    token_ST = np.zeros((len(sequences), width), np.int64)
    seen_ST = np.zeros((len(sequences), width), bool)
    home_N = np.full(batch.layout.num_tokens, -1, np.int64)
    for number, sequence in enumerate(sequences):
        token_ST[number, : len(sequence)], seen_ST[number, : len(sequence)] = sequence, True
        new = home_N[sequence] < 0
        home_N[sequence[new]] = number * width + np.nonzero(new)[0]
    device = batch.ids_N.device
    return tuple(torch.from_numpy(each).to(device) for each in (token_ST, seen_ST, home_N))  # type: ignore[return-value]


def choose_body(model: Any, corpus: Corpus) -> Packed | Padded:
    """Packed if it gives, on a few rows, the hidden states that the model gives each sequence by itself."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    usual = core.config._attn_implementation
    was_training = core.training
    core.eval()
    try:
        batch = make_batch(corpus, _probe_rows(corpus), core.device)
        with torch.no_grad():
            expected = Padded(core)(batch)
            core.set_attn_implementation(NAME)
            found = Packed(core)(batch)
        if _close(found, expected):
            return Packed(core)
        reason = f"hidden states differ by up to {float((found - expected).abs().max()):.2g}"
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # what models say that know no layout
        reason = f"{type(error).__name__}: {error}"
    finally:
        core.train(was_training)
    core.set_attn_implementation(usual)
    log.warning("rows of this model cannot be packed (%s); they are padded instead, which is slower", reason)
    return Padded(core)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, measured against the size of the states."""
    tolerance = 1e-3 if found.dtype is torch.float32 else 5e-2
    return bool((found - expected).float().norm() <= tolerance * expected.float().norm())


def _probe_rows(corpus: Corpus) -> np.ndarray[Any, Any]:
    """A few short rows, with a forked one among them if there is any."""
    order = np.argsort(corpus.lengths, kind="stable")
    forked = order[corpus.forked[order]][: PROBE_ROWS // 2]
    return np.concatenate([order[: PROBE_ROWS // 2], forked]).astype(np.int64)
