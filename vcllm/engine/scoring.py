"""Reading a model instead of letting it write: log-probabilities of texts, a classifier's probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vcllm.contracts.critiques import SCORE_PREFIX
from vcllm.contracts.problems import BadRequest
from vcllm.engine.prompts import encode, render, without_special_tokens

# Shapes: B texts, T tokens, K tokens scored, V vocabulary, C labels of a classifier.

TOKENS_PER_PASS = 8192
LOGITS_PER_PASS = 1 << 26
"""Bounds the memory of one forward pass over a large vocabulary (256 MiB in float32)."""

Item = tuple[list[int], list[int]]
"""Token ids of a prompt and of what follows it."""


def score(
    model: Any, tokenizer: Any, prompts: Sequence[str], continuations: Sequence[Sequence[str]], context: int
) -> list[list[float]]:
    """Summed log-probability (natural log, temperature 1) of each rendered prompt's continuations.

    BadRequest when one of them has more than `context` tokens.
    """
    heads = encode(tokenizer, prompts) if prompts else []
    tails = [encode(tokenizer, each) if each else [] for each in continuations]
    longest = max((len(head) + len(tail) for head, own in zip(heads, tails, strict=True) for tail in own), default=0)
    if longest > context:
        raise BadRequest(
            f"The messages and what is to follow have {longest} tokens, but this model reads {context}. Shorten them.",
            param="messages",
            code="context_length_exceeded",
        )
    flat = iter(score_ids(model, [(head, tail) for head, own in zip(heads, tails, strict=True) for tail in own]))
    return [[next(flat) for _ in own] for own in tails]


@torch.inference_mode()
def score_ids(model: Any, items: Sequence[Item]) -> list[float]:
    """The same for token ids; an empty continuation scores 0."""
    scores = [0.0] * len(items)
    longest = max((len(tail) for _, tail in items), default=0) or 1
    max_rows = max(1, LOGITS_PER_PASS // (longest * model.config.get_text_config().vocab_size))
    for rows in by_length([len(head) + len(tail) for head, tail in items], max_rows):
        logits_BKV, target_BK, real_BK = continuation_logits(model, [items[row] for row in rows])
        log_probs_BK = logits_BKV.float().log_softmax(-1).gather(-1, target_BK[..., None])[..., 0]
        for row, total in zip(rows, (log_probs_BK * real_BK).sum(-1).tolist(), strict=True):
            scores[row] = total
    return scores


def largest_gap(model: Any, item: Item) -> float:
    """How far, in logits, the continuation ever is from the model's favourite; 0: it is its greedy text."""
    with torch.inference_mode():
        logits_BKV, target_BK, _ = continuation_logits(model, [item])
    chosen_BK = logits_BKV.gather(-1, target_BK[..., None])[..., 0]
    return float((logits_BKV.amax(-1) - chosen_BK).max())


def continuation_logits(model: Any, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that predict each continuation [B, K, V], its tokens [B, K], and which of them count."""
    ids_BT, seen_BT = padded([head + tail for head, tail in items], model.device)
    width = max(1, *(len(tail) for _, tail in items))
    target_BK = torch.zeros(len(items), width, dtype=torch.long)
    place_BK, real_BK = torch.zeros_like(target_BK), torch.zeros_like(target_BK)
    for b, (head, tail) in enumerate(items):
        target_BK[b, : len(tail)] = torch.tensor(tail, dtype=torch.long)
        place_BK[b, : len(tail)] = torch.arange(len(head) - 1, len(head) + len(tail) - 1)
        real_BK[b, : len(tail)] = 1
    place_BK, target_BK, real_BK = (each.to(model.device) for each in (place_BK, target_BK, real_BK))
    output = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False, logits_to_keep=place_BK)
    return output.logits, target_BK, real_BK


def critic_text(tokenizer: Any, query: str, response: str) -> str:
    """What a critic reads: the exchange in the chat template, nothing else. Training and serving share it."""
    turns = [
        {"role": "user", "content": without_special_tokens(tokenizer, query)},
        {"role": "assistant", "content": without_special_tokens(tokenizer, response)},
    ]
    return render(tokenizer, turns, add_generation_prompt=False)


@torch.inference_mode()
def class_probabilities(
    model: Any, ids: Sequence[list[int]], temperature: float | Sequence[float] = 1.0
) -> list[list[float]]:
    """Per text a number for every label, in the order of `config.id2label`.

    Classes share a probability of 1, at a temperature for all texts or each its own; labels that begin with
    `score:` are no classes, each is a score in [0, 1] by itself.
    """
    is_score_C = torch.tensor([label.startswith(SCORE_PREFIX) for _, label in sorted(model.config.id2label.items())])
    is_score_C, temperature_B = is_score_C.to(model.device), torch.as_tensor(temperature).expand(len(ids))
    found: list[list[float]] = [[] for _ in ids]
    pad = model.config.get_text_config().pad_token_id
    for rows in by_length([len(text) for text in ids]):
        ids_BT, seen_BT = padded([ids[row] for row in rows], model.device, pad)
        logits_BC = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).logits
        classes_BC = logits_BC.float() / temperature_B[rows, None].to(model.device)
        probs_BC = classes_BC.masked_fill(is_score_C, -torch.inf).softmax(-1)
        values_BC = probs_BC.where(~is_score_C, logits_BC.float().sigmoid())
        for row, values in zip(rows, values_BC.tolist(), strict=True):
            found[row] = values
    return found


def by_length(
    lengths: Sequence[int], max_rows: int = 1 << 30, max_tokens: int = TOKENS_PER_PASS
) -> Iterator[list[int]]:
    """Indices in passes of similar length, to spend little on padding; each within rows and padded tokens."""
    pending: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = len(pending) >= max_rows or (len(pending) + 1) * lengths[index] > max_tokens
        if pending and full:
            yield pending
            pending = []
        pending.append(index)
    if pending:
        yield pending


def padded(rows: Sequence[list[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids padded on the right, and 1 where they are real."""
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long)
    seen_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return ids_BT.to(device), seen_BT.to(device)
