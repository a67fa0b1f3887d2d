"""What prompts begin alike with is read once; nobody's answer depends on who was there before."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import Watched, tiny_causal, tiny_tokenizer
from vcllm.engine.cache import SlotCache
from vcllm.engine.choice import forward_of
from vcllm.engine.engine import Batch
from vcllm.engine.prefill import Limits
from vcllm.engine.prefix import BLOCK, PrefixCache, keys_of
from vcllm.engine.sequence import Request, new_request

WITHOUT = Limits(prefix_tokens=0)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_causal(tiny_tokenizer())


def tokens(number: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(5, 300) for _ in range(number)]


RULES = tokens(2 * BLOCK, seed=0)
"""What several prompts begin with: two blocks."""


def watched(model: Any, limits: Limits | None = None) -> tuple[Batch, list[tuple[int, ...]]]:
    """A batch, and the shapes that its forward comes to read."""
    forward = Watched(model)
    return Batch(model, frozenset(), limits, forward=forward), forward.read


def run(batch: Batch, *requests: Request) -> list[list[int]]:
    """To the end; what all their samples have written."""
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()
    return [sequence.tokens for request in requests for sequence in request.sequences]


def greedy(prompt: list[int], max_tokens: int = 8, **options: Any) -> Request:
    return new_request(prompt, max_tokens, temperature=0, **options)


def without_prefixes(model: Any, *prompts: list[int]) -> list[list[int]]:
    """What is written greedily where nothing is remembered, one prompt at a time."""
    return [run(Batch(model, frozenset(), WITHOUT), greedy(prompt))[0] for prompt in prompts]


def filled(model: Any, prompt: list[int]) -> SlotCache:
    """A cache into whose only row the prompt has been read."""
    cache, position_1T = SlotCache(), torch.arange(len(prompt))[None]
    cache.reserve(1, len(prompt))
    cache.aim(position_1T, len(prompt))
    with torch.inference_mode():
        forward_of(model)(cache, torch.tensor([prompt]), position_1T, position_1T[:, -1:])
    return cache


def test_a_known_beginning_is_not_read_again(model: Any) -> None:
    """Of the second prompt only what is its own; it is answered as if all had been read."""
    first, second = [*RULES, *tokens(9, seed=1)], [*RULES, *tokens(5, seed=2)]
    batch, read = watched(model)
    run(batch, greedy(first, 1))

    [written] = run(batch, greedy(second))

    assert read[:2] == [(1, 64 + 9), (1, 5)]
    assert [written] == without_prefixes(model, second)
    assert batch.prefixes.num_hits == 64


def test_the_last_token_is_always_read(model: Any) -> None:
    """A prompt of whole blocks, asked twice: its end is needed for the first token of the answer."""
    batch, read = watched(model)
    first = run(batch, greedy(RULES))
    read.clear()

    second = run(batch, greedy(RULES))

    assert read[0] == (1, BLOCK)
    assert second == first


def test_prompts_that_begin_alike_and_come_together_are_read_once(model: Any) -> None:
    """The first alone, then the others with its blocks."""
    prompts = [[*RULES, *tokens(3 + i, seed=i)] for i in range(4)]
    batch, read = watched(model)

    written = run(batch, *[greedy(prompt) for prompt in prompts])

    assert [shape for shape in read if shape[1] > 1] == [(1, 64 + 3), (3, 6)]
    assert written == without_prefixes(model, *prompts)


def test_prompts_that_share_nothing_do_not_wait_for_one_another(model: Any) -> None:
    """Read in one pass."""
    batch, read = watched(model)

    run(batch, *[greedy(tokens(70, seed=i), 1) for i in range(3)])

    assert read == [(3, 70)]


def test_known_and_unknown_beginnings_share_a_pass(model: Any) -> None:
    """Rows then begin at different positions; each is answered as it is alone."""
    prompts = [[*RULES, *tokens(20, seed=1)], tokens(11, seed=2), [*RULES[:BLOCK], *tokens(7, seed=3)]]
    batch, read = watched(model)
    run(batch, greedy(RULES, 1))
    read.clear()

    written = run(batch, *[greedy(prompt) for prompt in prompts])

    assert read[0] == (3, BLOCK + 20)  # one block is known: the other ended its prompt, and ends are not kept
    assert written == without_prefixes(model, *prompts)


def test_samples_share_a_known_beginning(model: Any) -> None:
    """Three seeded answers to one prompt are the same with and without."""

    def samples() -> Request:
        return new_request([*RULES, 7, 8], 8, seed=3, n=3)

    batch, read = watched(model)
    run(batch, greedy([*RULES, 9], 1))
    read.clear()

    written = run(batch, samples())

    assert read[:2] == [(1, 2), (3, 1)]
    assert written == run(Batch(model, frozenset(), WITHOUT), samples())


def test_a_long_prompt_is_read_in_pieces_behind_its_known_beginning(model: Any) -> None:
    """While somebody watches: 64 tokens are known, 40 are read 16 at a time."""
    prompt = [*RULES, *tokens(40, seed=1)]
    batch, read = watched(model, Limits(prefill_tokens=16))
    run(batch, greedy([*RULES, 9], 1))
    other = greedy([5], 30, urgent=True)
    batch.add(other)
    batch.step()
    read.clear()

    request = greedy(prompt)
    run(batch, request)

    assert [shape for shape in read if shape[1] > 1] == [(1, 16), (1, 16), (1, 8)]
    assert [request.sequences[0].tokens] == without_prefixes(model, prompt)


def test_a_cancelled_reading_leaves_nothing_wrong_behind(model: Any) -> None:
    """Half a prompt has been read when nobody wants it any more; the next one like it is read and answered."""
    prompt = [*RULES, *tokens(40, seed=1)]
    batch, _ = watched(model, Limits(prefill_tokens=5))  # 40 a step, as nobody watches
    cancelled = greedy(prompt)
    batch.add(cancelled)
    batch.step()
    cancelled.sequences[0].cancelled = True
    batch.step()
    assert len(batch.prefixes) == 0

    written = run(batch, greedy(prompt))

    assert written == without_prefixes(model, prompt)
    assert len(batch.prefixes) == 3 * BLOCK


def test_what_is_remembered_outlives_the_rows_and_their_memory(model: Any) -> None:
    """Blocks are copies: neither other rows in the same place nor a rest of the batch change them."""
    prompt = [*RULES, 7]
    batch, read = watched(model)
    first = run(batch, greedy(prompt))
    run(batch, *[greedy(tokens(80, seed=i)) for i in range(3)])
    batch.rest()
    read.clear()

    second = run(batch, greedy(prompt))

    assert read[0] == (1, 1)
    assert second == first


def test_a_later_change_of_the_row_does_not_reach_a_block(model: Any) -> None:
    """Neither by what is written over it, nor through shared memory."""
    prefixes, prompt = PrefixCache(1000), [*RULES, 7]
    cache = filled(model, prompt)
    expected = cache.layers[1].keys[0, :BLOCK].clone()
    prefixes.keep(prompt, cache, row=0)

    with torch.inference_mode():
        for layer in cache.layers:
            layer.each(Tensor.zero_)

    assert torch.equal(prefixes.find(prompt)[0][1][0], expected)
    assert prefixes.find(prompt)[0][1][0].untyped_storage().nbytes() == expected.nbytes


def test_memory_is_bounded_and_the_latest_stays(model: Any) -> None:
    """Four blocks fit: the prompt that was used longest ago goes."""
    prompts = [[*tokens(2 * BLOCK, seed=i), 7] for i in range(3)]
    prefixes = PrefixCache(4 * BLOCK + 1)
    for prompt in prompts[:2]:
        prefixes.keep(prompt, filled(model, prompt), row=0)
    prefixes.find(prompts[0])

    prefixes.keep(prompts[2], filled(model, prompts[2]), row=0)

    assert len(prefixes) == 4 * BLOCK
    assert [len(prefixes.find(prompt)) for prompt in prompts] == [2, 0, 2]


def test_the_end_of_a_prompt_goes_before_its_beginning(model: Any) -> None:
    """Without the beginning, what is left of it could never be found."""
    old, new = [*tokens(3 * BLOCK, seed=1), 7], [*tokens(BLOCK, seed=2), 7]
    prefixes = PrefixCache(3 * BLOCK)
    prefixes.keep(old, filled(model, old), row=0)

    prefixes.keep(new, filled(model, new), row=0)

    assert len(prefixes.find(old)) == 2
    assert len(prefixes.find(new)) == 1


def test_of_a_prompt_longer_than_the_memory_the_beginning_is_kept(model: Any) -> None:
    """It shares that with others."""
    prompt, prefixes = [*tokens(4 * BLOCK, seed=1), 7], PrefixCache(2 * BLOCK)

    prefixes.keep(prompt, filled(model, prompt), row=0)

    assert len(prefixes.find(prompt)) == 2


def test_a_block_is_known_by_all_before_it() -> None:
    """The same 32 tokens behind other ones, or in another place, are another block."""
    block, other = tokens(BLOCK, seed=1), tokens(BLOCK, seed=2)

    keys = [list(keys_of([*prompt, 7])) for prompt in ([*block, *block], [*other, *block], block)]

    assert keys[0][0] == keys[2][0]
    assert len({keys[0][0], keys[0][1], keys[1][0], keys[1][1]}) == 4


def test_prompts_that_differ_before_a_block_never_share_it(model: Any) -> None:
    """The first token differs, 95 are the same: everything is read."""
    first = [5, *tokens(95, seed=1)]
    second = [6, *first[1:]]
    batch, read = watched(model)
    run(batch, greedy(first, 1))

    [written] = run(batch, greedy(second))

    assert read[:2] == [(1, 96), (1, 96)]
    assert [written] == without_prefixes(model, second)


def test_a_memory_of_nothing_remembers_nothing(model: Any) -> None:
    """Prompts that begin alike are then read whole, and none waits for another."""
    prompts = [[*RULES, 7], [*RULES, 8]]
    batch, read = watched(model, WITHOUT)

    written = run(batch, *[greedy(prompt) for prompt in prompts])

    assert [shape for shape in read if shape[1] > 1] == [(2, 65)]
    assert written == without_prefixes(model, *prompts)
