"""Which token comes next, for all rows at once.

Every row draws one uniform number per step from a counter-based hash of its own key, so a seeded request
gives the same text whoever shares its batch. The number is looked up in the row's cumulative distribution
(inverse transform sampling): one random number per row, not one per vocabulary entry.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Shapes: B rows, V vocabulary.

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash64(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): scatters neighbouring counters."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def row_key(seed: int, index: int) -> int:
    """The key of sample `index` of a request; two samples of one seed share no numbers."""
    start = np.array([seed % 2**64], dtype=np.uint64)
    return int(hash64(hash64(start) + np.array([index + 1], dtype=np.uint64) * _GOLDEN)[0])


def uniforms(key_B: np.ndarray, step_B: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row and step, as float32."""
    mixed_B = hash64(key_B + step_B.astype(np.uint64) * _GOLDEN)
    # 23 bits: u * total then stays below total in float32, so the lookup cannot run off the end.
    return ((mixed_B >> np.uint64(41)).astype(np.float64) / 2**23).astype(np.float32)


def sample(logits_BV: Tensor, temperature_B: np.ndarray, top_p_B: np.ndarray, uniform_B: np.ndarray) -> Tensor:
    """The next token of every row; temperature 0 is the most likely one."""
    greedy_B = temperature_B == 0
    if greedy_B.all():
        return logits_BV.argmax(-1)
    device = logits_BV.device
    divisor_B = torch.from_numpy(np.where(greedy_B, 1, temperature_B)).to(device)
    probs_BV = (logits_BV.float() / divisor_B[:, None]).softmax(-1)
    nucleus = np.flatnonzero((top_p_B < 1) & ~greedy_B)
    if len(nucleus):
        rows = torch.from_numpy(nucleus).to(device)
        probs_BV[rows] = keep_nucleus(probs_BV[rows], torch.from_numpy(top_p_B[nucleus]).to(device))
    token_B = look_up(probs_BV, torch.from_numpy(uniform_B).to(device))
    if greedy_B.any():
        token_B = torch.where(torch.from_numpy(greedy_B).to(device), logits_BV.argmax(-1), token_B)
    return token_B


def keep_nucleus(probs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Zero all but the fewest tokens whose mass reaches top_p (Holtzman et al. 2020); one always stays."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill(before_BV >= top_p_B[:, None], 0)
    return torch.zeros_like(probs_BV).scatter_(-1, order_BV, sorted_BV)


def look_up(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token under each uniform in the cumulative distribution; the rows need not sum to 1."""
    cumulative_BV = probs_BV.cumsum(-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    token_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    return token_B.clamp_(max=probs_BV.shape[-1] - 1)
