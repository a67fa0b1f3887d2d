"""The step loop writes what one-at-a-time generation writes, whoever shares the batch and joins when."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from tests.fakes import Watched, tiny_causal, tiny_tokenizer
from vcllm.engine.cache import SlotCache, bytes_per_token, roomy
from vcllm.engine.engine import Batch, greedy_texts
from vcllm.engine.prefill import Limits
from vcllm.engine.prompts import stop_ids
from vcllm.engine.sequence import Request, new_request

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": LlamaConfig(**WIDTHS),
    "qwen2": Qwen2Config(**WIDTHS),
    "mistral-sliding": MistralConfig(**WIDTHS, sliding_window=6),
    "gemma3-mixed": Gemma3TextConfig(
        **WIDTHS, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        vocab_size=300,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_causal(tokenizer)


def prompts(number: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, 300) for _ in range(draw.randint(1, 12))] for _ in range(number)]


def run(batch: Batch, requests: list[Request]) -> list[list[list[int]]]:
    """Everything at once, to the end."""
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()
    return [[sequence.tokens for sequence in request.sequences] for request in requests]


def alone(model: Any, request: Request) -> list[list[int]]:
    [tokens] = run(Batch(model, frozenset()), [request])
    return tokens


def generated(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    """What `transformers.generate` writes greedily."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return [token for token in out[0, len(prompt) :].tolist() if token != model.config.eos_token_id]


def test_greedy_rows_of_a_mixed_batch_equal_generate(model: Any, tokenizer: Any) -> None:
    """Prompts of different lengths, together, token for token."""
    requests = [new_request(prompt, 24, temperature=0) for prompt in prompts(9)]

    written = run(Batch(model, stop_ids(model, tokenizer)), requests)

    assert [tokens for [tokens] in written] == [generated(model, r.prompt, 24) for r in requests]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_model_families_equal_generate(family: str) -> None:
    """Whatever the attention (sliding, mixed, learned positions), no code of ours knows the family."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="sdpa").eval()
    requests = [new_request(prompt, 16, temperature=0) for prompt in prompts(4)]

    written = run(Batch(model, frozenset([2])), requests)

    assert [tokens for [tokens] in written] == [generated(model, r.prompt, 16) for r in requests]


def test_eager_attention_equals_sdpa(model: Any, tokenizer: Any) -> None:
    """A model that brings its own attention gets additive masks."""
    eager = tiny_causal(tokenizer)
    eager.set_attn_implementation("eager")
    by_sdpa = run(Batch(model, frozenset()), [new_request(p, 12, temperature=0) for p in prompts(5)])

    by_eager = run(Batch(eager, frozenset()), [new_request(p, 12, temperature=0) for p in prompts(5)])

    assert by_eager == by_sdpa


def test_a_seeded_request_does_not_notice_its_neighbours(model: Any) -> None:
    """Joining at any step, among rows of other temperatures, it writes what it writes alone."""

    def seeded() -> Request:
        return new_request([7, 8, 9], 20, temperature=0.8, top_p=0.9, seed=11, n=3)

    batch = Batch(model, frozenset())
    for seed, prompt in enumerate(prompts(6)):
        batch.add(new_request(prompt, 8 + 3 * seed, temperature=seed / 3, seed=seed))
    for _ in range(5):
        batch.step()

    [crowded] = run(batch, [seeded()])

    assert crowded == alone(model, seeded())
    assert len({tuple(tokens) for tokens in crowded}) == 3


def test_few_rows_at_a_time_write_the_same(model: Any) -> None:
    """Continuous batching under a tight limit = everything at once."""
    at_once = run(Batch(model, frozenset()), [new_request(p, 9, seed=i) for i, p in enumerate(prompts(12))])
    narrow = Batch(model, frozenset(), Limits(max_rows=3, max_tokens=80))

    in_turns = run(narrow, [new_request(p, 9, seed=i) for i, p in enumerate(prompts(12))])

    assert in_turns == at_once


def test_a_long_prompt_is_read_in_pieces_and_others_go_on(model: Any) -> None:
    """A watched row gets a token in every step while 100 prompt tokens are read 16 at a time."""
    long = prompts(1, seed=5)[0] * 50
    whole = alone(model, new_request(long[:100], 6, temperature=0))
    batch = Batch(model, frozenset(), Limits(prefill_tokens=16))
    other = new_request([5], 40, temperature=0, urgent=True)
    batch.add(other)
    batch.step()
    request = new_request(long[:100], 6, temperature=0)
    batch.add(request)

    lengths = []
    while not request.sequences[0].tokens:
        batch.step()
        lengths.append(len(other.sequences[0].tokens))
    while not batch.idle:
        batch.step()

    assert lengths == list(range(2, 2 + 7))
    assert request.sequences[0].tokens == whole[0]


def test_limits_bound_rows_and_cache(model: Any) -> None:
    """Never more rows, nor more positions in the cache, than the limits say; everybody gets served."""
    limits = Limits(max_rows=5, max_tokens=160)
    batch = Batch(model, frozenset(), limits)
    requests = [new_request(prompt, 4 + 5 * (i % 4), n=1 + i % 3) for i, prompt in enumerate(prompts(10))]
    for request in requests:
        batch.add(request)

    while not batch.idle:
        batch.step()
        assert len(batch.rows) <= limits.max_rows
        assert len(batch.rows) * batch.rows.longest <= limits.max_tokens

    assert all(sequence.finish for request in requests for sequence in request.sequences)


def test_urgent_requests_are_admitted_first(model: Any) -> None:
    """Somebody who waits for one answer is not put behind bulk work."""
    batch = Batch(model, frozenset(), Limits(max_rows=2))
    bulk = [new_request([5], 8, n=2) for _ in range(3)]
    for request in bulk:
        batch.add(request)
    batch.step()
    urgent = new_request([6], 8, urgent=True)
    batch.add(urgent)

    while not urgent.sequences[0].finish:
        batch.step()

    assert [request.sequences[0].finish for request in bulk] == ["length", None, None]


def test_a_cancelled_row_is_gone_after_the_next_step(model: Any) -> None:
    """Its neighbours write on as if it had never been there."""
    batch = Batch(model, frozenset())
    kept, cancelled = new_request([5, 6], 12, seed=1), new_request([7, 8, 9], 12, seed=2, n=2)
    batch.add(cancelled)
    batch.add(kept)
    batch.step()
    for sequence in cancelled.sequences:
        sequence.cancelled = True
    batch.step()

    assert len(batch.rows) == 1
    while not batch.idle:
        batch.step()
    assert [kept.sequences[0].tokens] == alone(model, new_request([5, 6], 12, seed=1))


def test_a_request_cancelled_while_it_waits_or_is_read_costs_nothing(model: Any) -> None:
    """Its prompt is not read any further, and the batch becomes idle."""
    batch = Batch(model, frozenset(), Limits(prefill_tokens=1))
    request = new_request(list(range(5, 25)), 8)
    batch.add(request)
    batch.step()
    request.sequences[0].cancelled = True

    batch.step()

    assert batch.idle
    assert request.sequences[0].tokens == []


def test_samples_of_one_prompt_share_its_prefill(model: Any) -> None:
    """Five samples, one prompt row read."""
    forward = Watched(model)

    run(Batch(model, frozenset(), forward=forward), [new_request([5, 6, 7], 2, n=5)])

    assert forward.read == [(1, 3), (5, 1)]


def test_the_stop_token_ends_an_answer_and_is_not_part_of_it(model: Any) -> None:
    """finish is `stop`; without it the answer runs to its limit."""
    [unstopped] = alone(model, new_request([5, 6], 10, temperature=0))
    request = new_request([5, 6], 10, temperature=0)

    [[stopped]] = run(Batch(model, frozenset([unstopped[4]])), [request])

    assert stopped == unstopped[: unstopped.index(unstopped[4])]
    assert request.sequences[0].finish == "stop"


def test_the_cache_shrinks_on_the_side_that_is_no_longer_needed() -> None:
    """Many short rows, then one long one: not many long ones."""
    cache = SlotCache()
    cache.reserve(*roomy(200, 20))
    position_BT = torch.arange(4)[None]
    cache.aim(position_BT, 4)
    keys, _ = cache.update(torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 8), 0)

    cache.reserve(*roomy(1, 2000))

    assert keys.shape == (1, 2, 4, 8)
    assert tuple(cache.layers[0].keys.shape) == (1, 2048, 2, 8)
    assert cache.layers[0].keys[0, :4].eq(1).all()
    assert not cache.layers[0].keys[0, 4:].any()


def test_the_cost_of_a_token_in_the_cache(model: Any) -> None:
    """2 layers x (keys + values) x 2 heads x 8 x 4 bytes."""
    assert bytes_per_token(model.config, torch.float32) == 2 * 2 * 2 * 8 * 4


def test_models_without_plain_attention_are_refused(tokenizer: Any) -> None:
    """Linear attention keeps no keys and values per position."""
    model = tiny_causal(tokenizer)
    model.config.layer_types = ["full_attention", "linear_attention"]

    with pytest.raises(ValueError, match="linear_attention"):
        Batch(model, frozenset())


def test_greedy_texts_are_the_same_in_training_mode(model: Any, tokenizer: Any) -> None:
    """The trainer records them from a model it is training, and finds it in training mode again."""
    serving = greedy_texts(model, tokenizer, ["Who may speak?", "谁可以发言？"])
    model.train()

    training = greedy_texts(model, tokenizer, ["Who may speak?", "谁可以发言？"])

    assert training == serving
    assert model.training
    model.eval()


def test_rows_keep_their_columns_together() -> None:
    """Rows that leave take all their columns along; the last ones fill the gaps."""
    batch = Batch(tiny_causal(tiny_tokenizer()), frozenset())
    requests = [new_request([5] * (i + 1), 9, temperature=i, seed=i) for i in range(5)]
    for request in requests:
        batch.add(request)
    batch.step()
    for i in (0, 3):
        requests[i].sequences[0].cancelled = True

    batch.step()

    assert [row.request for row in batch.rows.sequences] == [requests[4], requests[1], requests[2]]
    assert (batch.rows.position - 1).tolist() == [5, 2, 3]
    assert batch.rows.key.tolist() == [row.key for row in batch.rows.sequences]
    assert batch.rows.step.dtype == np.int64
