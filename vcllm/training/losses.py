"""Losses as pure functions of log-probabilities.

Shapes: M learned tokens, S sequences, P pairs (rows that fork), R rows, K criteria.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["sigmoid", "ipo"]


def weighted_nll(logprob_M: Tensor, weight_M: Tensor) -> Tensor:
    """Sum of the weighted negative log-likelihood."""
    return -(logprob_M * weight_M).sum()


def sequence_sums(logprob_M: Tensor, sequence_M: Tensor, num_sequences: int) -> Tensor:
    """Log-probability of every sequence (S)."""
    zeros_S = torch.zeros(num_sequences, dtype=logprob_M.dtype, device=logprob_M.device)
    return zeros_S.index_add(0, sequence_M, logprob_M)


def dpo_loss(policy_gap_P: Tensor, reference_gap_P: Tensor, beta: float) -> Tensor:
    """Sigmoid DPO loss of each pair (Rafailov et al. 2023, eq. 7).

    A gap is log p(chosen) - log p(rejected), each summed over the answer's tokens.
    """
    return -F.logsigmoid(beta * (policy_gap_P - reference_gap_P))


def ipo_loss(policy_gap_P: Tensor, reference_gap_P: Tensor, beta: float) -> Tensor:
    """IPO loss of each pair (Azar et al. 2023, eq. 17): the gap grows to 1 / (2 beta) over the reference's and stops.

    Here a gap is a difference of means over the answer's tokens: sums would ask long answers for less per token.
    """
    return (policy_gap_P - reference_gap_P - 1 / (2 * beta)).square()


def score_losses(logits_RK: Tensor, target_RK: Tensor) -> Tensor:
    """Binary cross-entropy with soft targets in [0, 1]; 0 where the target is NaN."""
    each_RK = F.binary_cross_entropy_with_logits(logits_RK, target_RK.nan_to_num(), reduction="none")
    return each_RK.where(~target_RK.isnan(), 0.0)
