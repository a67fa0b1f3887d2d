"""Tokens are drawn from the distribution that was asked for, from numbers that belong to one row alone."""

from __future__ import annotations

import numpy as np
import torch

from vcllm.engine.sampling import keep_nucleus, look_up, row_key, sample, uniforms


def draws(logits: list[float], number: int, temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    """How often each token is drawn by rows with different keys."""
    key_B = np.array([row_key(seed, 0) for seed in range(number)], dtype=np.uint64)
    logits_BV = torch.tensor([logits]).expand(number, -1)
    token_B = sample(
        logits_BV,
        np.full(number, temperature, dtype=np.float32),
        np.full(number, top_p, dtype=np.float32),
        uniforms(key_B, np.zeros(number)),
    )
    return np.bincount(token_B.numpy(), minlength=len(logits)) / number


def test_tokens_come_as_often_as_their_probability() -> None:
    """20,000 draws, within four standard errors."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    expected = (logits / 0.7).softmax(-1).numpy()

    shares = draws(logits.tolist(), 20_000, temperature=0.7)

    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / 20_000)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    """0.5 + 0.3 reach 0.75; the others get nothing."""
    probs_BV = torch.tensor([[0.15, 0.5, 0.05, 0.3]])

    kept_BV = keep_nucleus(probs_BV, torch.tensor([0.75]))

    assert torch.equal(kept_BV, torch.tensor([[0.0, 0.5, 0.0, 0.3]]))


def test_a_tiny_top_p_is_greedy() -> None:
    """The most likely token is always kept."""
    assert draws([0.0, 1.0, 0.5], 200, top_p=1e-6).tolist() == [0, 1, 0]


def test_rows_of_different_kinds_share_a_batch() -> None:
    """Greedy, nucleus and plain rows get what each would get alone."""
    logits_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    temperature_B, top_p_B = np.float32([0, 1, 1.5]), np.float32([1, 0.5, 1])
    uniform_B = np.float32([0.3, 0.6, 0.9])

    together = sample(logits_BV, temperature_B, top_p_B, uniform_B).tolist()

    rows = [slice(i, i + 1) for i in range(3)]
    assert together == [sample(logits_BV[r], temperature_B[r], top_p_B[r], uniform_B[r]).item() for r in rows]
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
