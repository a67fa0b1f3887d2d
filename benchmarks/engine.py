"""Tokens per second of the local engine and of others in the same process, on the same prompts: no server, no text.

    OMP_NUM_THREADS=2 python -m benchmarks.engine                    2M, 256 prompts: the starter's bulk work
    OMP_NUM_THREADS=2 python -m benchmarks.engine --model 89m --num-requests 1,8,32 --prompt-tokens 60 --new-tokens 64
    python -m benchmarks.engine --model 7b --device cuda --dtype bfloat16 --num-requests 1,32,128

Models are Qwen3-shaped and random. All sides get all prompts at once, sample at temperature 1 and write `--new-tokens`
tokens per prompt. `generate` and `static` have them as one padded batch, their best case; `static` is the bare loop of
forward passes, which knows no requests that come and go; `batching` is transformers' ContinuousBatchingManager. Runs
alternate; a line of JSON for each number of prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from benchmarks.training_data import SHAPES, VOCABULARY
from vcllm.engine.engine import Batch
from vcllm.engine.load import with_shared_weights
from vcllm.engine.prefill import Limits
from vcllm.engine.sequence import new_request

STARTER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 6}
HALF_B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
}
MODELS = {"2m": STARTER, "0.5b": HALF_B, **SHAPES}
UNTIED = {"7b"}
CONTEXT = 1024
CACHE_SHARE = {"cpu": 0.1, "cuda": 0.4}
"""Of the memory that is free, what the paged cache of transformers may take; by default nearly all."""

Work = Callable[[list[list[int]]], int]
"""Prompts to the number of tokens written."""


def random_model(name: str, device: str, dtype: str) -> Any:
    """Drawn on the device: nothing is written to a disk or read from one."""
    shape = {"vocab_size": VOCABULARY, **MODELS[name]}
    shape.setdefault("num_key_value_heads", shape["num_attention_heads"])
    config = Qwen3Config(
        **shape,
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=name not in UNTIED,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        dtype=dtype,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def random_prompts(number: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Around `length` tokens each; other ones for every seed, so that no cache knows them."""
    draw = random.Random(seed)
    lengths = [draw.randint(length - 3, length + 3) for _ in range(number)]
    return [[draw.randrange(1, vocabulary) for _ in range(size)] for size in lengths]


def engine(model: Any, new_tokens: int, max_rows: int) -> Work:
    """The step loop, without the thread and the text around it."""

    def work(prompts: list[list[int]]) -> int:
        batch = Batch(model, frozenset(), Limits(max_rows=max_rows))
        requests = [new_request(prompt, new_tokens, seed=seed) for seed, prompt in enumerate(prompts)]
        for request in requests:
            batch.add(request)
        while not batch.idle:
            batch.step()
        return sum(len(request.sequences[0].tokens) for request in requests)

    return work


def generate(model: Any, new_tokens: int) -> Work:
    """transformers' `generate`, left-padded in one batch."""

    def work(prompts: list[list[int]]) -> int:
        ids, seen = padded(prompts, model.device)
        out = model.generate(ids, attention_mask=seen, max_new_tokens=new_tokens, do_sample=True, top_k=0)
        return (out.shape[1] - ids.shape[1]) * len(prompts)

    return work


def static(model: Any, new_tokens: int) -> Work:
    """One forward pass per token and nothing else: what a batch that never changes costs."""

    @torch.inference_mode()
    def work(prompts: list[list[int]]) -> int:
        ids, seen = padded(prompts, model.device)
        cache = DynamicCache(config=model.config)
        places = (seen.cumsum(1) - 1).clamp(min=0)
        for _ in range(new_tokens):
            logits = model(
                ids, attention_mask=seen, position_ids=places, past_key_values=cache, logits_to_keep=1
            ).logits[:, -1]
            ids = torch.multinomial(logits.float().softmax(-1), 1)
            seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
            places = places[:, -1:] + 1
        return new_tokens * len(prompts)

    return work


def padded(prompts: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and what of them is no padding, which is on the left."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)


def batching(model: Any, new_tokens: int, stack: ExitStack) -> Work:
    """transformers' ContinuousBatchingManager; it runs from here on, until the stack is closed.

    It changes the attention of its model, so it gets one of its own over the same weights.
    """
    own = with_shared_weights(model)
    config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, max_new_tokens=new_tokens, pad_token_id=0)
    limits = ContinuousBatchingConfig(max_memory_percent=CACHE_SHARE[model.device.type])
    manager = stack.enter_context(
        own.continuous_batching_context_manager(generation_config=config, continuous_batching_config=limits)
    )

    def work(prompts: list[list[int]]) -> int:
        manager.add_requests(prompts, max_new_tokens=new_tokens)
        written, left = 0, len(prompts)
        while left:
            result = manager.get_result(timeout=1)
            assert result is not None or manager.is_running(), "transformers' continuous batching has stopped"
            if result is not None and result.is_finished():
                assert result.error is None, result.error
                written, left = written + len(result.generated_tokens), left - 1
        return written

    return work


def compare(sides: dict[str, Work], prompts: list[list[list[int]]]) -> dict[str, list[float]]:
    """Tokens a second of each side in each run; the first, a warm-up, is left out."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run, asked in enumerate(prompts):
        for name in reversed(sides) if run % 2 else sides:
            start = time.perf_counter()
            written = sides[name](asked)
            if run:
                rates[name].append(written / (time.perf_counter() - start))
    return rates


def weights_read(model: Any) -> int:
    """Weights that a forward pass of one token reads: all but the input embedding, where that is not the output's."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total if model.config.tie_word_embeddings else total - model.get_input_embeddings().weight.numel()


def row(model: Any, name: str, number: int, rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and of every other side the ratio within each run: median, least, most."""
    found: dict[str, Any] = {"model": name, "requests": number, "threads": torch.get_num_threads()}
    found["weights_read"] = weights_read(model)
    for name, values in rates.items():
        found[f"{name}_tokens_per_s"] = round(statistics.median(values), 1)
        found[f"{name}_all"] = [round(value, 1) for value in values]
    for name, values in rates.items():
        if name != "ours" and "ours" in rates:
            ratios = [ours / theirs for ours, theirs in zip(rates["ours"], values, strict=True)]
            found[f"ratio_{name}"] = [round(pick(ratios), 2) for pick in (statistics.median, min, max)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(MODELS), default="2m")
    parser.add_argument("--num-requests", default="256", help="comma-separated; default: 256")
    parser.add_argument("--prompt-tokens", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--max-rows", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--sides", default="ours,generate,static,batching", help="comma-separated; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    model = random_model(options.model, options.device, options.dtype)
    vocabulary = model.config.vocab_size
    with ExitStack() as stack:
        makers: dict[str, Callable[[], Work]] = {
            "ours": lambda: engine(model, options.new_tokens, options.max_rows),
            "generate": lambda: generate(model, options.new_tokens),
            "static": lambda: static(model, options.new_tokens),
            "batching": lambda: batching(model, options.new_tokens, stack),
        }
        sides = {name: makers[name]() for name in options.sides.split(",")}
        for number in map(int, options.num_requests.split(",")):
            prompts = [
                random_prompts(number, options.prompt_tokens, vocabulary, run) for run in range(options.runs + 1)
            ]
            rates = compare(sides, prompts)
            print(json.dumps(row(model, options.model, number, rates)), flush=True)


if __name__ == "__main__":
    main()
