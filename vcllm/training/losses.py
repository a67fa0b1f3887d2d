"""Losses as pure functions, and the token log-probabilities they need.

Shapes: B rows, T positions, N learned tokens of the whole batch, H hidden size, V vocabulary, P pairs.
The head is applied to the N learned positions only: the (B x T x V) logits never exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vcllm.training.batches import Batch


def token_logprobs(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each learned token (N) and the row it belongs to (N)."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_BTH = core.base_model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False)[0]
    learned_BT = batch.targets_BT[:, 1:]
    logits_NV = core.get_output_embeddings()(hidden_BTH[:, :-1][learned_BT])
    if (cap := getattr(core.config, "final_logit_softcapping", None)) is not None:
        logits_NV = cap * torch.tanh(logits_NV / cap)
    target_N = batch.ids_BT[:, 1:][learned_BT]
    row_N = learned_BT.nonzero()[:, 0]
    return -F.cross_entropy(logits_NV.float(), target_N, reduction="none"), row_N


def weighted_nll(logprob_N: Tensor, row_N: Tensor, weights_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the negative log-likelihood, and the sum of weights to divide it by."""
    weight_N = weights_B[row_N]
    return -(logprob_N * weight_N).sum(), weight_N.sum()


def sequence_logprobs(logprob_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """Sum over each row's learned tokens (B)."""
    return torch.zeros(num_rows, dtype=logprob_N.dtype, device=logprob_N.device).index_add(0, row_N, logprob_N)


def dpo_loss(policy_gap_P: Tensor, reference_gap_P: Tensor, beta: float) -> Tensor:
    """Sum over pairs of the sigmoid DPO loss (Rafailov et al. 2023, eq. 7).

    A gap is log p(chosen) - log p(rejected), summed over the answer's tokens.
    """
    return -F.logsigmoid(beta * (policy_gap_P - reference_gap_P)).sum()
