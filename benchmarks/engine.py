"""Tokens per second of the local engine against `transformers.generate`, on the same prompts, in one run.

    OMP_NUM_THREADS=2 python benchmarks/engine.py --num-requests 256

The model is a random 2.0M-parameter Qwen3. Both sides sample at temperature 1 and write `--new-tokens`
tokens per request; `generate` gets all prompts at once as one padded batch, its best case. Runs alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from vcllm.engine.engine import Batch
from vcllm.engine.prefill import Limits
from vcllm.engine.sequence import new_request

VOCABULARY = 3072


def random_model() -> Any:
    """2.0M parameters, the size of the starter's."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def random_prompts(number: int, length: int) -> list[list[int]]:
    """Around `length` tokens each."""
    draw = random.Random(0)
    lengths = [draw.randint(length - 3, length + 3) for _ in range(number)]
    return [[draw.randrange(1, VOCABULARY) for _ in range(size)] for size in lengths]


def run_engine(model: Any, prompts: list[list[int]], new_tokens: int, max_rows: int) -> int:
    """Tokens written by the step loop, without the thread and the text around it."""
    batch = Batch(model, frozenset(), Limits(max_rows=max_rows))
    requests = [new_request(prompt, new_tokens, seed=seed) for seed, prompt in enumerate(prompts)]
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()
    return sum(len(request.sequences[0].tokens) for request in requests)


def run_generate(model: Any, prompts: list[list[int]], new_tokens: int) -> int:
    """The same with `generate`, left-padded in one batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(ids, attention_mask=seen, max_new_tokens=new_tokens, do_sample=True, top_k=0)
    return (out.shape[1] - width) * len(prompts)


def tokens_per_s(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-requests", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--max-rows", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    model, prompts = random_model(), random_prompts(options.num_requests, options.prompt_tokens)
    sides: dict[str, Callable[[], int]] = {
        "ours": lambda: run_engine(model, prompts, options.new_tokens, options.max_rows),
        "generate": lambda: run_generate(model, prompts, options.new_tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(options.runs + 1):
        for name, work in sides.items():
            rate = tokens_per_s(work)
            if run:  # the first is warm-up
                rates[name].append(rate)
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["generate"], strict=True)]
    row = {
        "threads": torch.get_num_threads(),
        **{f"{name}_tokens_per_s": round(statistics.median(rate)) for name, rate in rates.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
