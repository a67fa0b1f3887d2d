"""What a classifier makes of an exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import SCORE_PREFIX
from vcllm.engine.prompts import render, without_special_tokens
from vcllm.engine.scoring import by_length

# Shapes: B texts, T tokens, C labels.


def critic_text(tokenizer: Any, query: str, response: str, history: Sequence[ChatMessage] = ()) -> str:
    """What a critic reads: the exchange in the chat template, after the turns before it, and nothing else. Training and
    serving share it."""
    said = [(message.role, message.content) for message in history]
    turns = [
        {"role": role, "content": without_special_tokens(tokenizer, text)}
        for role, text in [*said, ("user", query), ("assistant", response)]
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


def padded(rows: Sequence[list[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids padded on the right, and 1 where they are real."""
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long)
    seen_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return ids_BT.to(device), seen_BT.to(device)
