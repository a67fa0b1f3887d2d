"""A model and what it is to learn, as one module: from a micro-batch to a loss.

One module, so that whatever wraps modules (DDP, FSDP) sees a single forward call that ends in the loss.

Shapes: N tokens, M learned tokens, R rows, S sequences, P pairs, C classes, K criteria, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcllm.contracts.problems import BadRequest
from vcllm.training.batches import Batch
from vcllm.training.body import Packed, Padded
from vcllm.training.head import Head, chunked_loss, token_logprobs
from vcllm.training.losses import PreferenceLoss, dpo_loss, ipo_loss, score_losses, sequence_sums, weighted_nll

Figures = dict[str, Tensor]
"""Sums over a micro-batch; `num_…` are what they are divided by."""


@dataclass
class Totals:
    """What the sums of a whole step are divided by, over all its micro-batches and processes."""

    weight: float = 1.0
    """Weighted learned tokens (or rows, for a classifier)."""
    pairs: float = 1.0
    scores: float = 1.0
    """Weighted scores by criterion, over all criteria."""


@dataclass(frozen=True)
class AnswerLoss:
    """Supervised loss on learned tokens; on rows that fork, a preference loss beside it."""

    beta: float = 0.1
    kind: PreferenceLoss = "sigmoid"
    pair_weight: float = 0.0
    """Weight of the supervised term on a pair's chosen answer."""
    other_weight: float = 1.0
    """Weight of the supervised term on rows that do not fork."""
    reference: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By row: log-probabilities of chosen and rejected under the reference."""


class Learner(nn.Module):
    """`forward(batch, totals)` is the micro-batch's part of the step's loss."""

    def __init__(self, model: Any, body: Packed | Padded) -> None:
        super().__init__()
        self.model = model
        self.body = body
        self.figures: Figures = {}
        self._no_split_modules = getattr(self.core, "_no_split_modules", None)
        """Where FSDP may cut, as transformers' models say it."""

    @property
    def core(self) -> Any:
        """The transformers model, without an adapter's wrapping."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


class AnswerLearner(Learner):
    """Language modelling, instruction tuning and preferences."""

    def __init__(self, model: Any, body: Packed | Padded, loss: AnswerLoss) -> None:
        super().__init__(model, body)
        self.loss = loss

    def head(self) -> Head:
        return find_head(self.core)

    def forward(self, batch: Batch, totals: Totals) -> Tensor:
        hidden_MH = self.body(batch).index_select(0, batch.source_M)
        terms = _Terms(self.loss, batch, totals)
        loss = chunked_loss(self.head(), hidden_MH, batch.target_M, terms.row_ends, terms)
        self.figures = terms.figures
        return loss

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probability of every sequence (S)."""
        hidden_MH = self.body(batch).index_select(0, batch.source_M)
        logprob_M = token_logprobs(self.head(), hidden_MH, batch.target_M)
        return sequence_sums(logprob_M, batch.sequence_M, batch.num_sequences)


class _Terms:
    """The loss of any run of whole rows, and the figures worth showing."""

    def __init__(self, loss: AnswerLoss, batch: Batch, totals: Totals) -> None:
        self.loss, self.batch, self.totals = loss, batch, totals
        device = batch.ids_N.device
        row_M = torch.searchsorted(batch.first_R, batch.sequence_M, right=True) - 1
        second_M = batch.sequence_M > batch.first_R[row_M]
        forked_M = batch.forked_R[row_M]
        factor_M = torch.where(forked_M, loss.pair_weight, loss.other_weight) * ~second_M
        self.weight_M = batch.weight_R[row_M] * factor_M
        num_R = torch.bincount(row_M, minlength=len(batch.rows))
        self.row_ends: list[int] = num_R.cumsum(0).tolist()
        self.row_M, self.second_M = row_M, second_M
        pairs = [loss.reference.get(row, (0.0, 0.0)) for row in batch.rows]
        self.reference_R2 = torch.tensor(pairs, device=device)
        self.figures: Figures = {}

    def __call__(self, logprob_C: Tensor, start: int, stop: int) -> Tensor:
        weight_C = self.weight_M[start:stop]
        total = weighted_nll(logprob_C, weight_C) / self.totals.weight
        self._note(nll=total.detach() * self.totals.weight)
        row_C = self.row_M[start:stop]
        first, last = int(row_C[0]), int(row_C[-1]) + 1
        if not bool(self.batch.forked_R[first:last].any()):
            return total
        return total + self._preferences(logprob_C, start, stop, first, last)

    def _preferences(self, logprob_C: Tensor, start: int, stop: int, first: int, last: int) -> Tensor:
        loss, batch = self.loss, self.batch
        place_C = 2 * (self.row_M[start:stop] - first) + self.second_M[start:stop]
        sums_P2 = sequence_sums(logprob_C, place_C, 2 * (last - first)).view(-1, 2)
        reference_P2 = self.reference_R2[first:last]
        if loss.kind == "ipo":
            count_P2 = sequence_sums(torch.ones_like(logprob_C), place_C, 2 * (last - first)).view(-1, 2).clamp(min=1)
            sums_P2, reference_P2 = sums_P2 / count_P2, reference_P2 / count_P2
        forked_P = batch.forked_R[first:last]
        gap_P = (sums_P2[:, 0] - sums_P2[:, 1])[forked_P]
        reference_P = (reference_P2[:, 0] - reference_P2[:, 1])[forked_P]
        each_P = (ipo_loss if loss.kind == "ipo" else dpo_loss)(gap_P, reference_P, loss.beta)
        with torch.no_grad():
            margin_P = loss.beta * (gap_P - reference_P)
            chosen_P = loss.beta * (sums_P2[:, 0] - reference_P2[:, 0])[forked_P]
            self._note(
                margin=margin_P.sum(),
                preferred=(margin_P > 0).sum(),
                chosen_reward=chosen_P.sum(),
                preference_loss=each_P.sum(),
                num_pairs=forked_P.sum(),
            )
        return (each_P * batch.weight_R[first:last][forked_P]).sum() / self.totals.pairs

    def _note(self, **sums: Tensor) -> None:
        for name, value in sums.items():
            self.figures[name] = self.figures.get(name, torch.zeros((), device=value.device)) + value


class ClassLearner(Learner):
    """A classifier over whole rows, read at the last token; classes are balanced by `balance_C`.

    Outputs after the classes score a criterion each: sigmoids, learned from the rows that have a score for it.
    """

    balance_C: Tensor

    def __init__(self, model: Any, body: Packed | Padded, balance_C: Tensor, score_weight: float = 0.5) -> None:
        super().__init__(model, body)
        self.register_buffer("balance_C", balance_C, persistent=False)
        self.score_weight = score_weight

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of every row's classes (R, C) and criteria (R, K), float32."""
        last_RH = self.body(batch).index_select(0, batch.last_R)
        logits_RC, logits_RK = self.core.score(last_RH).float().tensor_split((len(self.balance_C),), dim=-1)
        return logits_RC, logits_RK

    def forward(self, batch: Batch, totals: Totals) -> Tensor:
        logits_RC, logits_RK = self.logits(batch)
        each_R = F.cross_entropy(logits_RC, batch.label_R, reduction="none")
        weight_R = self.balance_C[batch.label_R] * batch.weight_R
        self.figures = {"nll": (each_R * weight_R).sum().detach()}
        loss = (each_R * weight_R).sum() / totals.weight
        if not logits_RK.shape[1]:
            return loss
        each_RK = score_losses(logits_RK, batch.score_RK)
        scores = (each_RK * batch.weight_R[:, None]).sum() / totals.scores
        self.figures["score_loss"] = scores.detach()
        return loss + self.score_weight * scores


def find_head(core: Any) -> Head:
    """The model's output layer; BadRequest where it is more than a linear map."""
    layer = core.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise BadRequest(
            "The output layer (lm_head) carries an adapter or is not linear, and could not be trained in chunks. "
            "Leave it out of lora.target_modules."
        )
    softcap = getattr(core.config.get_text_config(), "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, softcap)
