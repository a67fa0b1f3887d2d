"""Encoded rows made by hand, models of one or two layers, and what a plain computation says of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen3Config

from vcllm.training.batches import Batch, make_batch
from vcllm.training.corpus import Corpus, Counts, Encoded, write_corpus

CPU = torch.device("cpu")
VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """`gqa`: keys shared by heads; `window`: tokens see the eight before; `softcap`: scores and logits are capped."""
    shape = SHAPE | changes
    config = {
        "gqa": lambda: Qwen3Config(**shape),
        "untied": lambda: Qwen3Config(**shape, tie_word_embeddings=False),
        "window": lambda: MistralConfig(**shape, sliding_window=8),
        "softcap": lambda: Gemma2Config(
            **shape,
            sliding_window=8,
            attn_logit_softcapping=0.7,
            final_logit_softcapping=1.5,
            query_pre_attn_scalar=8,
        ),
    }[kind]()
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def document(chance: random.Random, length: int, weight: float = 1.0) -> Encoded:
    return Encoded(tokens(chance, length), [False] + [True] * (length - 1), weight=weight)


def answer(chance: random.Random, prompt: int, length: int, weight: float = 1.0) -> Encoded:
    return Encoded(tokens(chance, prompt + length), [False] * prompt + [True] * length, weight=weight)


def pair(chance: random.Random, prefix: int, chosen: int, rejected: int, weight: float = 1.0) -> Encoded:
    learned = [False] * prefix + [True] * (chosen + rejected)
    return Encoded(tokens(chance, len(learned)), learned, prefix=prefix, fork=prefix + chosen, weight=weight)


def tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(2, VOCABULARY) for _ in range(count)]


def mixed(chance: random.Random) -> list[Encoded]:
    """Of all kinds, from two tokens to many, so that several groups of like length arise."""
    return [
        document(chance, 2),
        pair(chance, 5, 3, 9, 0.5),
        answer(chance, 4, 6, 2.0),
        document(chance, 37),
        pair(chance, 1, 2, 2),
        answer(chance, 30, 1),
        pair(chance, 20, 14, 4, 2.0),
        document(chance, 11, 0.25),
    ]


def corpus_of(folder: Path, rows: Sequence[Encoded]) -> Corpus:
    return write_corpus(folder / "encoded", rows, Counts())


def whole(corpus: Corpus) -> Batch:
    """All rows in one micro-batch."""
    return make_batch(corpus, np.arange(len(corpus)), CPU)


def unrolled(row: Encoded) -> list[tuple[list[int], list[bool]]]:
    """A row's sequences as anybody would write them: one, or prompt with chosen and prompt with rejected."""
    if row.fork is None:
        return [(row.ids, row.learned)]
    first = slice(0, row.fork)
    return [
        (row.ids[first], row.learned[first]),
        (row.ids[: row.prefix] + row.ids[row.fork :], row.learned[: row.prefix] + row.learned[row.fork :]),
    ]


def plain_logprobs(model: Any, row: Encoded) -> list[Tensor]:
    """For each sequence of a row, log-probabilities of its learned tokens by the whole model, one at a time."""
    found = []
    for ids, learned in unrolled(row):
        logits_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        logprob_T = logits_TV[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        found.append(logprob_T[torch.tensor(learned[1:])])
    return found


def grads(model: Any) -> dict[str, Tensor]:
    """Gradients by name; taken off the model."""
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    """Of every tensor the difference is small beside its size."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        worst = float((found[name] - value).abs().max())
        assert worst <= rtol * float(value.abs().max()) + 1e-7, f"{name} differs by {worst:.2g}"
