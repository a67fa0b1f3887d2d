"""Which token comes next, for all rows at once.

Every row draws one uniform number per step from a counter-based hash of its own key, so a seeded request
gives the same text whoever shares its batch. The number is looked up in the row's cumulative distribution
(inverse transform sampling): one random number per row, not one per vocabulary entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Shapes: B rows, R rows of them, V vocabulary.

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


@dataclass(frozen=True, slots=True)
class Draw:
    """How a row wants its tokens drawn."""

    temperature: float = 1.0
    """0: always the likeliest."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    logprobs: int | None = None
    """So many alternatives are told with each token; None: nothing is."""

    @property
    def cuts(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


def sample(logits_BV: Tensor, draws: Sequence[Draw], uniform_B: np.ndarray) -> np.ndarray:
    """The next token of every row."""
    biased = [row for row, draw in enumerate(draws) if draw.bias]
    if biased:
        logits_BV = with_bias(logits_BV, draws, biased)
    temperature_B = np.array([draw.temperature for draw in draws], dtype=np.float32)
    greedy_B = temperature_B == 0
    if greedy_B.all():
        return likeliest(logits_BV)
    divisor_B = torch.from_numpy(np.where(greedy_B, 1, temperature_B)).to(logits_BV.device)
    probs_BV = (logits_BV.float() / divisor_B[:, None]).softmax(-1)
    cut = [row for row, draw in enumerate(draws) if draw.cuts]
    if cut:
        probs_BV[cut] = keep_likeliest(probs_BV[cut], [draws[row] for row in cut])
    token_B = look_up(probs_BV, torch.from_numpy(uniform_B).to(probs_BV.device)).cpu().numpy()
    if greedy_B.any():
        token_B[greedy_B] = likeliest(logits_BV[torch.from_numpy(greedy_B).to(logits_BV.device)])
    return token_B


def likeliest(logits_BV: Tensor) -> np.ndarray:
    """The first of the largest in each row. On a CPU by NumPy, whose search is some twenty times as fast as torch's."""
    if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32:
        return logits_BV.numpy().argmax(-1)
    return logits_BV.argmax(-1).cpu().numpy()


def with_bias(logits_BV: Tensor, draws: Sequence[Draw], rows: Sequence[int]) -> Tensor:
    """A copy in which these rows have their biases added; tokens the model does not have are passed over."""
    logits_BV = logits_BV.clone()
    for row in rows:
        known = {token: value for token, value in draws[row].bias.items() if token < logits_BV.shape[1]}
        index = torch.tensor(list(known), device=logits_BV.device, dtype=torch.long)
        logits_BV[row, index] += torch.tensor(list(known.values()), device=logits_BV.device, dtype=logits_BV.dtype)
    return logits_BV


def keep_likeliest(probs_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Zero all but each row's top_k, and of those all but the fewest whose share reaches top_p; one always stays.

    Top-p: Holtzman et al. 2020. Its share is of what top_k has left.
    """
    size, device = probs_BV.shape[-1], probs_BV.device
    top_k_B = torch.tensor([min(draw.top_k or size, size) for draw in draws], device=device)
    top_p_B = torch.tensor([draw.top_p for draw in draws], device=device)
    sorted_BV, order_BV = probs_BV.topk(int(top_k_B.max()), sorted=True)
    rank_V = torch.arange(sorted_BV.shape[-1], device=device)
    sorted_BV = sorted_BV.masked_fill(rank_V >= top_k_B[:, None], 0)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill(before_BV >= (top_p_B * sorted_BV.sum(-1))[:, None], 0)
    return torch.zeros_like(probs_BV).scatter_(-1, order_BV, sorted_BV)


TokenReport = tuple[float, list[tuple[int, float]]]
"""Log-probability of a token that was written, and the likeliest in its place."""


def reports(logits_BV: Tensor, draws: Sequence[Draw], token_B: np.ndarray) -> list[TokenReport | None]:
    """What is told about the tokens that were drawn; None for rows that ask for nothing."""
    told: list[TokenReport | None] = [None] * len(draws)
    rows = [row for row, draw in enumerate(draws) if draw.logprobs is not None]
    if not rows:
        return told
    logprobs_RV = logits_BV[rows].float().log_softmax(-1)
    chosen_R = logprobs_RV.gather(-1, torch.from_numpy(token_B[rows]).to(logprobs_RV.device)[:, None])[:, 0].tolist()
    most = min(max(draws[row].logprobs or 0 for row in rows), logprobs_RV.shape[-1])
    values, tokens = (each.tolist() for each in logprobs_RV.topk(most))
    for i, row in enumerate(rows):
        wanted = draws[row].logprobs or 0
        told[row] = chosen_R[i], list(zip(tokens[i][:wanted], values[i][:wanted], strict=True))
    return told


def look_up(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token under each uniform in the cumulative distribution; the rows need not sum to 1."""
    cumulative_BV = probs_BV.cumsum(-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    token_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    return token_B.clamp_(max=probs_BV.shape[-1] - 1)
