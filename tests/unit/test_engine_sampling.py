"""Tokens are drawn from the distribution that was asked for, from numbers that belong to one row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vcllm.engine.sampling import Draw, keep_likeliest, likeliest, look_up, reports, row_key, sample, uniforms


def draws(logits: list[float], number: int, **draw: Any) -> np.ndarray:
    """How often each token is drawn by rows with different keys."""
    key_B = np.array([row_key(seed, 0) for seed in range(number)], dtype=np.uint64)
    logits_BV = torch.tensor([logits]).expand(number, -1)
    token_B = sample(
        logits_BV,
        [Draw(**draw)] * number,
        uniforms(key_B, np.zeros(number)),
    )
    return np.bincount(token_B, minlength=len(logits)) / number


def test_tokens_come_as_often_as_their_probability() -> None:
    """20,000 draws, within four standard errors."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    expected = (logits / 0.7).softmax(-1).numpy()

    shares = draws(logits.tolist(), 20_000, temperature=0.7)

    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / 20_000)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    """0.5 + 0.3 reach 0.75; the others get nothing."""
    probs_BV = torch.tensor([[0.15, 0.5, 0.05, 0.3]])

    kept_BV = keep_likeliest(probs_BV, [Draw(top_p=0.75)])

    assert torch.equal(kept_BV, torch.tensor([[0.0, 0.5, 0.0, 0.3]]))


def test_top_p_is_a_share_of_what_top_k_has_left() -> None:
    """Of 0.5, 0.3 and 0.15, the first two are 0.84."""
    probs_BV = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.15, 0.5, 0.05, 0.3]])

    kept_BV = keep_likeliest(probs_BV, [Draw(top_k=3, top_p=0.8), Draw(top_k=1)])

    assert torch.equal(kept_BV, torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.0, 0.5, 0.0, 0.0]]))


def test_log_probabilities_are_the_models_own() -> None:
    """Whatever temperature, bias and top_k the token was drawn with; rows that ask for nothing get nothing."""
    logits_BV = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    expected = logits_BV[0].log_softmax(-1).tolist()
    asking = Draw(temperature=0.1, top_k=1, bias={0: 100}, logprobs=2)

    [told, nothing] = reports(logits_BV, [asking, Draw()], np.array([0, 1]))

    assert nothing is None and told is not None
    assert told[0] == pytest.approx(expected[0])
    assert told[1] == [(1, pytest.approx(expected[1])), (2, pytest.approx(expected[2]))]


def test_bias_moves_logits_and_passes_over_unknown_tokens() -> None:
    """-100 forbids, and a token id beyond the vocabulary changes nothing."""
    assert draws([5.0, 0.0], 100, bias={0: -100, 99: 100}).tolist() == [0, 1]


def test_the_likeliest_is_the_first_of_equals() -> None:
    """By NumPy and by torch alike."""
    logits_BV = torch.tensor([[1.0, 2.0, 2.0]])

    assert likeliest(logits_BV).tolist() == likeliest(logits_BV.bfloat16()).tolist() == [1]


def test_a_tiny_top_p_is_greedy() -> None:
    """The most likely token is always kept."""
    assert draws([0.0, 1.0, 0.5], 200, top_p=1e-6).tolist() == [0, 1, 0]


def test_rows_of_different_kinds_share_a_batch() -> None:
    """Greedy, nucleus and plain rows get what each would get alone."""
    logits_BV = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    kinds = [Draw(temperature=0), Draw(top_p=0.5), Draw(temperature=1.5), Draw(top_k=3), Draw(bias={7: 100})]
    uniform_B = np.float32([0.3, 0.6, 0.9, 0.5, 0.2])

    together = sample(logits_BV, kinds, uniform_B).tolist()

    rows = [slice(i, i + 1) for i in range(5)]
    assert together == [sample(logits_BV[r], kinds[r], uniform_B[r]).item() for r in rows]
    assert together[4] == 7
    assert together[0] == logits_BV[0].argmax().item()


def test_the_largest_uniform_never_falls_off_the_end() -> None:
    """Also where the last tokens have no probability at all, which rounding must not give them."""
    probs_BV = torch.rand(64, 5000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    probs_BV[:, -100:] = 0
    largest_B = torch.full((64,), 1 - 2.0**-23)

    token_B = look_up(probs_BV, largest_B)

    assert probs_BV.gather(1, token_B[:, None]).gt(0).all()


def test_numbers_are_even_and_unrelated() -> None:
    """Over steps, seeds and samples: mean 1/2, no correlation with the neighbour."""
    by_step = uniforms(np.full(10_000, row_key(1, 0), dtype=np.uint64), np.arange(10_000))
    by_seed = uniforms(np.array([row_key(s, 0) for s in range(10_000)], dtype=np.uint64), np.zeros(10_000))
    by_sample = uniforms(np.array([row_key(1, i) for i in range(10_000)], dtype=np.uint64), np.zeros(10_000))

    for numbers in (by_step, by_seed, by_sample):
        assert abs(numbers.mean() - 0.5) < 0.02
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.05
        assert numbers.min() >= 0 and numbers.max() < 1


def test_negative_and_huge_seeds_are_seeds() -> None:
    """Any integer an API accepts."""
    assert len({row_key(seed, 0) for seed in (-1, 0, 2**63, 1 - 2**63, 12345)}) == 5
