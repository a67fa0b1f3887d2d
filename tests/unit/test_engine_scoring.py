"""Scores and class probabilities are those of one plain forward pass per text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fakes import Watched, score_ids, tiny_causal, tiny_classifier, tiny_tokenizer
from vcllm.engine import branches, scoring
from vcllm.engine.classes import class_probabilities, critic_text
from vcllm.engine.prefix import BLOCK, PrefixCache
from vcllm.engine.scoring import by_length, largest_gap


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_a_score_is_the_sum_of_its_tokens(tokenizer: Any) -> None:
    """Batched and padded = one at a time, computed by hand."""
    model = tiny_causal(tokenizer)
    items = [([5, 6, 7], [8, 9]), ([5], [10, 11, 12, 13]), ([20, 21], [22]), ([5, 6], [])]

    scores = score_ids(model, items)

    for (head, tail), found in zip(items, scores, strict=True):
        log_probs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        expected = sum(log_probs[len(head) + i - 1, token].item() for i, token in enumerate(tail))
        assert found == pytest.approx(expected, abs=1e-4)


def test_memory_for_a_large_vocabulary_is_bounded(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows per pass give the same scores as many."""
    model, items = tiny_causal(tokenizer), [([5, i], [i + 1, i + 2]) for i in range(6, 16)]
    at_once = score_ids(model, items)
    monkeypatch.setattr(scoring, "LOGITS_PER_PASS", 2 * 2 * len(tokenizer))

    in_passes = score_ids(model, items)

    assert in_passes == pytest.approx(at_once, abs=1e-4)


def test_greedy_words_have_no_gap(tokenizer: Any) -> None:
    """Any other word has one."""
    model = tiny_causal(tokenizer)
    favourite = model(torch.tensor([[5, 6]])).logits[0, -1].argmax().item()

    assert largest_gap(model, ([5, 6], [favourite])) == pytest.approx(0, abs=1e-5)
    assert largest_gap(model, ([5, 6], [favourite - 1])) > 0


def test_a_critic_reads_the_exchange_only(tokenizer: Any) -> None:
    """No system message, no place for the assistant to speak, no special token from the texts."""
    text = critic_text(tokenizer, "why?", "so <|end|>")

    assert text == "<|user|>why?<|end|><|assistant|>so  <|end|>"


def test_padding_does_not_change_a_judgement(tokenizer: Any) -> None:
    """Texts of all lengths together = each alone; a temperature flattens and keeps the favourite."""
    model = tiny_classifier(tokenizer)
    ids = [tokenizer("speak " * length)["input_ids"] for length in (1, 9, 3, 30, 2)]

    together = class_probabilities(model, ids)
    flatter = class_probabilities(model, ids, temperature=3.0)

    for text, probs, flat in zip(ids, together, flatter, strict=True):
        assert probs == pytest.approx(class_probabilities(model, [text])[0], abs=1e-5)
        assert sum(probs) == pytest.approx(1, abs=1e-5)
        assert max(flat) < max(probs) and flat.index(max(flat)) == probs.index(max(probs))


def test_scores_of_criteria_stand_beside_the_classes(tokenizer: Any) -> None:
    """Classes share a probability of 1 among themselves, wherever in the head they are; a score is a sigmoid."""
    labels = dict(enumerate(["consistent", "score:manner", "violating", "refusal", "score:stance", "broken"]))
    model = tiny_classifier(tokenizer, labels=labels)
    ids = tokenizer("speak in turn")["input_ids"]

    [values] = class_probabilities(model, [ids], temperature=2.0)

    logits = model(torch.tensor([ids])).logits[0]
    assert [values[i] for i in (0, 2, 3, 5)] == pytest.approx((logits[[0, 2, 3, 5]] / 2).softmax(-1).tolist(), abs=1e-5)
    assert [values[i] for i in (1, 4)] == pytest.approx(logits[[1, 4]].sigmoid().tolist(), abs=1e-5)


def test_every_text_can_have_its_own_temperature(tokenizer: Any) -> None:
    """Whatever order they are read in."""
    model = tiny_classifier(tokenizer)
    ids = [tokenizer("speak " * length)["input_ids"] for length in (9, 1, 4)]

    together = class_probabilities(model, ids, [1.0, 4.0, 2.0])

    for text, temperature, probs in zip(ids, (1.0, 4.0, 2.0), together, strict=True):
        assert probs == pytest.approx(class_probabilities(model, [text], temperature)[0], abs=1e-5)


def test_passes_hold_every_index_once_within_their_bounds() -> None:
    """Sorted by length, so that neighbours need little padding."""
    lengths = [7, 1, 9, 3, 3, 8, 2, 30]

    passes = list(by_length(lengths, max_rows=3, max_tokens=20))

    assert sorted(index for each in passes for index in each) == list(range(8))
    assert all(len(each) <= 3 for each in passes)
    assert all(len(each) * max(lengths[i] for i in each) <= 20 or len(each) == 1 for each in passes)
    assert list(by_length([])) == []


def shapes_read(model: Any, items: list[Any], prefixes: PrefixCache | None = None) -> list[tuple[int, ...]]:
    """What a scoring reads, pass by pass."""
    watched = Watched(model)
    score_ids(model, items, watched, prefixes)
    return watched.read


def test_nothing_is_read_twice(tokenizer: Any) -> None:
    """One reading of what three heads share, one of the rest of each with what its continuations share."""
    model, rubric = tiny_causal(tokenizer), list(range(5, 45))
    heads = [[*rubric, 50 + i] for i in range(3)]
    items = [(head, tail) for head in heads for tail in ([7, 8, 9], [7, 8, 10], [7, 11], [6, 12], [13])]

    assert shapes_read(model, items) == [(1, 40), (3, 1 + 3)]


def test_many_continuations_take_several_passes(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the whole head, whichever pass it is in."""
    model, heads = tiny_causal(tokenizer), [[5, 6, 7], [8], [9, 10]]
    tails = [[7, 8, 9], [7, 8, 10], [7, 11], [6, 12], [13], [14, 15, 16]]
    items = [(head, tail) for head in heads for tail in tails[: 3 + len(head)]]
    expected = [score_ids(model, [item])[0] for item in items]
    monkeypatch.setattr(branches, "BRANCHED_PER_PASS", 2)

    assert score_ids(model, items) == pytest.approx(expected, abs=1e-4)
    assert shapes_read(model, items) == [(3, 3 + 2), (3, 2), (3, 1)]


@pytest.mark.parametrize("num_heads", [1, 3])
def test_what_was_read_for_others_is_not_read_again(tokenizer: Any, num_heads: int) -> None:
    """Whole blocks of it; the scores stay."""
    model, rubric, prefixes = tiny_causal(tokenizer), [5 + i % 40 for i in range(2 * BLOCK + 8)], PrefixCache(1000)
    items = [([*rubric, 50 + i], [7, 8]) for i in range(num_heads)]

    assert shapes_read(model, items, prefixes) == [(1, 2 * BLOCK + 8), (num_heads, 1 + 1)]
    assert shapes_read(model, items, prefixes) == [(1, 8), (num_heads, 1 + 1)]
    assert score_ids(model, items, prefixes=prefixes) == pytest.approx(score_ids(model, items), abs=1e-4)


def test_shared_readings_score_as_separate_ones(tokenizer: Any) -> None:
    """Heads of different lengths, continuations that branch; the same item twice."""
    model, rubric = tiny_causal(tokenizer), list(range(5, 45))
    heads = [[*rubric, *range(50, 50 + i)] for i in range(1, 5)]
    items = [(head, tail) for head in heads for tail in ([7, 8, 9], [7, 8, 10], [7, 11], [6, 12], [13])]

    together = score_ids(model, [*items, items[3]])

    assert together == pytest.approx([score_ids(model, [item])[0] for item in [*items, items[3]]], abs=1e-4)
