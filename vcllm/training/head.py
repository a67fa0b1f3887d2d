"""From hidden states to a loss without ever holding the logits of more than a few tokens.

A loss that is a sum over rows needs the logits of one row at a time. So the head is applied to a chunk of rows, the
chunk's log-probabilities and loss are computed, and the gradients of hidden states and head are taken at once, before
the next chunk: forward and backward in one go, and no recomputation. Only a row longer than a chunk is passed over
twice. The gradients wait until autograd asks for them.

Shapes: M learned tokens, H hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 23
"""Logits of a chunk (32 MiB in float32)."""
SMALLEST_CHUNK = 128
"""Tokens; below, matrix products waste the machine however large the vocabulary is."""

RowLoss = Callable[[Tensor, int, int], Tensor]
"""Log-probabilities of the learned tokens [start, stop), those of whole rows, to a scalar summed over rows."""


@dataclass(frozen=True)
class Head:
    """The linear map to the vocabulary, and what some families do to its logits."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    """Logits are squashed into (-softcap, softcap)."""

    @property
    def chunk(self) -> int:
        """Tokens whose logits may exist at once."""
        return max(SMALLEST_CHUNK, CHUNK_LOGITS // len(self.weight_VH))

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """float32 logits (C, V)."""
        dtype = compute_dtype(hidden_CH)
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        logits_CV = torch.nn.functional.linear(hidden_CH.to(dtype), self.weight_VH.to(dtype), bias).float()
        return logits_CV if self.softcap is None else logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product computes in under autocast, else the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@torch.no_grad()
def token_logprobs(head: Head, hidden_MH: Tensor, target_M: Tensor) -> Tensor:
    """Log-probability of every target (M), in chunks, without gradients."""
    parts = [
        _logprobs(head.logits(hidden), target)[0]
        for hidden, target in zip(hidden_MH.split(head.chunk), target_M.split(head.chunk), strict=True)
    ]
    return torch.cat(parts) if parts else hidden_MH.new_zeros(0, dtype=torch.float32)


def chunked_loss(head: Head, hidden_MH: Tensor, target_M: Tensor, row_ends: list[int], row_loss: RowLoss) -> Tensor:
    """The sum of `row_loss` over chunks of whole rows, differentiable in hidden states and head.

    row_ends: for every row the number of learned tokens up to its end, ascending; the last is M.
    """
    return _ChunkedLoss.apply(hidden_MH, head.weight_VH, head.bias_V, head.softcap, target_M, row_ends, row_loss)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        target_M: Tensor,
        row_ends: list[int],
        row_loss: RowLoss,
    ) -> Tensor:
        head = Head(weight_VH, bias_V, softcap)
        grads = _Gradients(head, hidden_MH, ctx.needs_input_grad)
        total = torch.zeros((), device=hidden_MH.device)
        for start, stop in _chunks(row_ends, head.chunk):
            pieces = [(at, min(at + head.chunk, stop)) for at in range(start, stop, head.chunk)]
            logprob_C, spread = _piece_logprobs(head, hidden_MH, target_M, pieces)
            loss, slope_C = _slope(row_loss, logprob_C, start, stop)
            total = total + loss
            for at, end in pieces:
                if spread is None:  # more than one piece: its logits are gone, make them again
                    logits = head.logits(hidden_MH[at:end])
                    kept = (logits, _logprobs(logits, target_M[at:end])[1])
                else:
                    kept = spread
                grads.add(*kept, target_M[at:end], slope_C[at - start : end - start], at, end)
        ctx.grads = grads.hidden_MH, grads.weight_VH, grads.bias_V
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if grad is None else grad * outer[0].to(grad.dtype) for grad in ctx.grads]
        return (*scaled, None, None, None, None)


class _Gradients:
    """What each chunk adds to the gradients of hidden states, head and bias."""

    def __init__(self, head: Head, hidden_MH: Tensor, needed: tuple[bool, ...]) -> None:
        self.head, self.input_MH = head, hidden_MH
        self.hidden_MH = torch.empty_like(hidden_MH) if needed[0] else None
        self.weight_VH = torch.zeros_like(head.weight_VH) if needed[1] else None
        self.bias_V = torch.zeros_like(head.bias_V) if head.bias_V is not None and needed[2] else None

    def add(self, logits_CV: Tensor, norm_C: Tensor, target_C: Tensor, slope_C: Tensor, at: int, end: int) -> None:
        """Overwrites the logits: d loss / d logits = slope * (one at the target - probabilities)."""
        capped = None if self.head.softcap is None else 1 - (logits_CV / self.head.softcap).square_()
        grad_CV = logits_CV.sub_(norm_C[:, None]).exp_().mul_(-slope_C[:, None])
        grad_CV[torch.arange(end - at, device=grad_CV.device), target_C] += slope_C
        if capped is not None:
            grad_CV.mul_(capped)
        if self.bias_V is not None:
            self.bias_V += grad_CV.sum(0).to(self.bias_V.dtype)
        hidden_CH = self.input_MH[at:end]
        dtype = compute_dtype(hidden_CH)
        grad_CV = grad_CV.to(dtype)
        if self.hidden_MH is not None:
            self.hidden_MH[at:end] = grad_CV @ self.head.weight_VH.to(dtype)
        if self.weight_VH is not None:
            if self.weight_VH.dtype is dtype:
                self.weight_VH.addmm_(grad_CV.T, hidden_CH.to(dtype))
            else:
                self.weight_VH += grad_CV.T @ hidden_CH.to(dtype)


def _chunks(row_ends: list[int], size: int) -> list[tuple[int, int]]:
    """Runs of whole rows with at most `size` tokens; a longer row is a run of its own."""
    chunks: list[tuple[int, int]] = []
    start = last = 0
    for end in row_ends:
        if end - start > size and last > start:
            chunks.append((start, last))
            start = last
        last = end
    return [*chunks, (start, last)] if last > start else chunks


def _piece_logprobs(
    head: Head, hidden_MH: Tensor, target_M: Tensor, pieces: list[tuple[int, int]]
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Log-probabilities of all pieces, and the logits with their normaliser if there is but one piece."""
    if len(pieces) == 1:
        at, end = pieces[0]
        logits_CV = head.logits(hidden_MH[at:end])
        logprob_C, norm_C = _logprobs(logits_CV, target_M[at:end])
        return logprob_C, (logits_CV, norm_C)
    parts = [_logprobs(head.logits(hidden_MH[at:end]), target_M[at:end])[0] for at, end in pieces]
    return torch.cat(parts), None


def _logprobs(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    norm_C = torch.logsumexp(logits_CV, -1)
    return logits_CV.gather(-1, target_C[:, None])[:, 0] - norm_C, norm_C


def _slope(row_loss: RowLoss, logprob_C: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The chunk's loss, and its derivative by each log-probability."""
    with torch.enable_grad():
        leaf_C = logprob_C.detach().requires_grad_()
        loss = row_loss(leaf_C, start, stop)
        (slope_C,) = torch.autograd.grad(loss, leaf_C)
    return loss.detach(), slope_C
