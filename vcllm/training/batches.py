"""Rows of text to padded tensors: encoding with a loss mask, and a deterministic plan of batches.

Shapes: B rows, T positions of the longest row. The plan depends on the lengths, the seed and nothing else, so the
position in it is all a checkpoint needs to remember of the data.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vcllm.training import chats

POOL = 50
"""Batches' worth of rows that are sorted by length together: little padding, still well mixed."""


@dataclass(frozen=True)
class Example:
    """One encoded row. `targets[i]` says whether token i is learned."""

    ids: list[int]
    targets: list[bool]
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Padded rows; `targets_BT` marks the tokens that are learned (never the first of a row)."""

    ids_BT: Tensor
    attention_BT: Tensor
    targets_BT: Tensor
    weights_B: Tensor


def encode_all(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_length: int) -> list[Example]:
    """Language-model examples: every token is learned. Rows are `{"text"}` or `{"messages"}`."""
    return _examples(tokenizer, rows, chats.encode_documents(tokenizer, rows, max_length))


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[Example]:
    """Rendered texts as they are; every token is learned."""
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length)["input_ids"]
    return [Example(ids=ids, targets=[False] + [True] * (len(ids) - 1)) for ids in encoded]


def encode_chats(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_length: int) -> list[Example]:
    """Instruction examples: the answers of each row are learned, their ends of turn included.

    Rows are `{"messages": [...], "weight": 1.0}`. BadRequest when the template puts the end of turn outside the mask.
    """
    return _examples(tokenizer, rows, chats.encode_chats(tokenizer, [row["messages"] for row in rows], max_length))


def _examples(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], encoded: chats.Encoded[chats.Chat]
) -> list[Example]:
    nothing = chats.Chat([tokenizer.eos_token_id], [False])  # a dropped row keeps its number
    kept = [chat or nothing for chat in encoded.rows]
    return [Example(*chat, weight=float(row.get("weight", 1.0))) for row, chat in zip(rows, kept, strict=True)]


def plan_epoch(lengths: list[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers per batch: rows of like length together, at most `batch_tokens` with padding, batches shuffled."""
    chance = random.Random(f"{seed}-{epoch}")
    order = list(range(len(lengths)))
    chance.shuffle(order)
    mean = max(1, sum(lengths) // max(1, len(lengths)))
    pool = max(1, POOL * batch_tokens // mean)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        batches.extend(_cut(sorted(order[start : start + pool], key=lambda row: lengths[row]), lengths, batch_tokens))
    chance.shuffle(batches)
    return batches


def _cut(rows: list[int], lengths: list[int], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for row in rows:  # ascending lengths: the new row is always the longest
        if batches and lengths[row] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(examples: list[Example], pad_id: int, device: torch.device) -> Batch:
    """Right-padded tensors on `device`."""
    width = max(len(example.ids) for example in examples)
    ids_BT = torch.full((len(examples), width), pad_id, dtype=torch.long)
    attention_BT = torch.zeros((len(examples), width), dtype=torch.long)
    targets_BT = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids_BT[row, :length] = torch.tensor(example.ids)
        attention_BT[row, :length] = 1
        targets_BT[row, :length] = torch.tensor(example.targets)
    targets_BT[:, 0] = False
    weights_B = torch.tensor([example.weight for example in examples])
    return Batch(ids_BT.to(device), attention_BT.to(device), targets_BT.to(device), weights_B.to(device))
