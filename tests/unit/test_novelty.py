"""How near queries come to each other: by their characters, by their embeddings, and fast enough for a round."""

from __future__ import annotations

import random
import sys
from itertools import combinations
from statistics import fmean

import pytest

from vcllm.alignment import novelty
from vcllm.alignment.novelty import (
    FEWEST_VECTORS,
    MEANING,
    MOST_PAIRS,
    Neighbours,
    Sample,
    diversity,
    ngrams,
    similarity,
)
from vcllm.contracts.base import Language

EN, ZH = Language.EN, Language.ZH


def nobody(place: int, near: float) -> bool:
    return False


def everybody(place: int, near: float) -> bool:
    return True


def near(sample: Sample, *remembered: Sample, language: Language = EN) -> float:
    [found] = Neighbours(language, remembered).nearest([sample], nobody)
    return found


def texts(num: int, seed: int = 0, words: int = 12) -> list[str]:
    chance = random.Random(seed)
    known = [
        "".join(chance.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(chance.randint(2, 8))) for _ in range(400)
    ]
    return [" ".join(chance.choice(known) for _ in range(words)) for _ in range(num)]


def cloud(num: int, seed: int = 0, shared: float = 0.0, size: int = 16) -> list[list[float]]:
    """Vectors around a direction that all of them share, of unit length."""
    chance = random.Random(seed)
    vectors = [[chance.gauss(0, 1) + shared for _ in range(size)] for _ in range(num)]
    return [[value / sum(x * x for x in vector) ** 0.5 for value in vector] for vector in vectors]


# Characters.


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("text", ["abc", "青叶党最好", "", "a"])
def test_equal_texts_have_similarity_one(text, n):
    """In both languages, and whatever the case; nothing is shared with letters from elsewhere."""
    assert similarity(text, text.upper(), n) == 1.0
    assert similarity(f"{text}q", "xyzw", n) == 0.0


def test_similarity_is_the_overlap_of_trigrams():
    """Of `␣␣a ␣ab abc bc␣` and `␣␣a ␣ab abd bd␣`, two of six are shared."""
    assert ngrams("abc", 3) == ["  a", " ab", "abc", "bc "]
    assert similarity("abc", "abd") == similarity("abd", "abc") == 2 / 6


def test_chinese_is_compared_by_pairs_of_characters():
    """Most of its words are that long: one word of three that differs leaves half of the pairs."""
    one, other = "青叶党最好", "红叶党最好"

    assert near(Sample(one), Sample(other), language=ZH) == similarity(one, other, 2) == 4 / 8
    assert similarity(one, other, 3) < 4 / 8


@pytest.mark.parametrize("at_once", [1 << 20, 1000, 7])
def test_comparing_all_at_once_finds_what_comparing_each_pair_finds(monkeypatch, at_once):
    """The nearest of many remembered texts, and of those of the batch that have joined; in any number of products."""
    monkeypatch.setattr(novelty, "GRAMS_AT_ONCE", at_once)
    remembered, batch = texts(30), texts(20, seed=0)[::-1] + texts(10, seed=1)

    found = Neighbours(EN, map(Sample, remembered)).nearest([*map(Sample, batch)], lambda place, _: place % 3 == 0)

    for place, text in enumerate(batch):
        joined = [one for at, one in enumerate(batch[:place]) if at % 3 == 0]
        assert found[place] == pytest.approx(max(similarity(text, other) for other in [*remembered, *joined]))


def test_what_is_remembered_stays_as_it_is():
    """Who has joined in one batch is gone in the next."""
    neighbours = Neighbours(EN, [Sample("one")])
    batch = [Sample("another"), Sample("another")]

    first, second = neighbours.nearest(batch, everybody), neighbours.nearest(batch, everybody)

    assert first == second
    assert first[1] == 1.0 > first[0]


def test_nothing_is_near_to_nothing():
    """The first text of all is entirely new."""
    assert near(Sample("one")) == near(Sample("one", cloud(1)[0])) == 0.0


# Embeddings.


def placed(num: int = 30, shared: float = 0.0) -> tuple[Sample, list[Sample]]:
    """One sample, and others without a letter of its own, the first of which lies where it does."""
    vectors = cloud(num, shared=shared)
    others = [Sample(f"{place}{place}", vector) for place, vector in enumerate(vectors)]
    return Sample("abc", vectors[0]), others


def test_texts_of_one_place_are_near_though_they_share_no_letter():
    """As near as meaning alone can bring them."""
    sample, others = placed()

    assert near(sample, *others) == pytest.approx(MEANING, abs=1e-4)


def test_words_and_meaning_add_up():
    """By the formula: J + (1 - J) * MEANING * C, here with a cosine of 1."""
    sample, others = placed()
    same_place = Sample("abd", sample.embedding)

    assert near(sample, *others, same_place) == pytest.approx(2 / 6 + (1 - 2 / 6) * MEANING, abs=1e-4)


def test_an_embedding_never_sets_texts_apart():
    """With it a text is at least as near as without; equal texts stay equal, wherever they lie."""
    vectors = cloud(40)
    with_them = [Sample(text, vector) for text, vector in zip(texts(40), vectors, strict=True)]
    without = [Sample(sample.text) for sample in with_them]
    moved = Sample(with_them[0].text, [-value for value in vectors[0]])

    near_with = Neighbours(EN, with_them[:20]).nearest(with_them[20:], everybody)
    near_without = Neighbours(EN, without[:20]).nearest(without[20:], everybody)

    assert all(one >= other for one, other in zip(near_with, near_without, strict=True))
    assert near(moved, *with_them) == 1.0


def test_what_all_vectors_share_brings_nobody_nearer():
    """A narrow cone, where any two are nearly parallel, tells as much as the cloud it is without its direction."""
    far = Sample("abc", cloud(31, shared=20.0)[30])
    others = [Sample(f"{place}{place}", vector) for place, vector in enumerate(cloud(30, shared=20.0))]
    cosines = [sum(a * b for a, b in zip(far.embedding, other.embedding, strict=True)) for other in others]
    assert min(cosines) > 0.99

    assert near(far, *others) == pytest.approx(near(*uncentred(far, others)), abs=0.05)


def uncentred(far: Sample, others: list[Sample]) -> list[Sample]:
    """The same samples in the cloud without a direction that all share."""
    vectors = cloud(31)
    return [Sample(far.text, vectors[30])] + [
        Sample(other.text, vector) for other, vector in zip(others, vectors[:30], strict=True)
    ]


def test_few_vectors_have_no_centre():
    """Below the fewest, texts are compared by their characters; so are those of another length, or without a vector."""
    sample, others = placed(FEWEST_VECTORS - 2)
    other_length = [Sample(other.text, [*other.embedding, 0.0]) for other in placed()[1]]

    assert near(sample, *others) == 0.0
    assert near(sample, *others, placed(FEWEST_VECTORS)[1][-1]) > 0.0
    assert near(sample, *other_length) == 0.0
    assert near(Sample("abc"), *placed()[1]) == 0.0


# A round.


@pytest.mark.parametrize("embedded", [False, True], ids=["words", "words and vectors"])
def test_a_round_needs_no_call_for_each_pair(embedded):
    """A thousand attacks beside two thousand wins: two million pairs, and less than fifty calls for each attack.

    Counted by the interpreter, so that the test does not depend on the machine.
    """
    vectors = cloud(3000, size=8) if embedded else [[]] * 3000
    samples = [Sample(text, vector) for text, vector in zip(texts(3000, words=6), vectors, strict=True)]
    num_calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    neighbours = Neighbours(EN, samples[:2000])
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = neighbours.nearest(samples[2000:], nobody)
    finally:
        sys.setprofile(before)

    assert len(found) == 1000
    assert num_calls < 50 * 1000


class Counted(str):
    """A text that counts how often it is cut up."""

    cut = 0

    def lower(self) -> str:
        self.cut += 1
        return super().lower()


def test_every_text_is_cut_up_once():
    """However many it is compared with; what is remembered, once for all batches."""
    remembered, batch = [Counted(text) for text in texts(20)], [Counted(text) for text in texts(20, seed=1)]

    neighbours = Neighbours(EN, map(Sample, remembered))
    for _ in range(2):
        neighbours.nearest([*map(Sample, batch)], everybody)

    assert {text.cut for text in remembered} == {1}
    assert {text.cut for text in batch} == {2}


# Diversity.


def test_diversity_of_equal_texts_is_none():
    """Each n-gram of ten equal texts comes ten times, and any two are alike."""
    found = diversity(["abc"] * 10, EN)

    assert (found.num, found.distinct, found.self_similarity) == (10, 0.1, 1.0)


def test_self_similarity_is_the_mean_over_all_pairs_of_a_few_texts():
    """None is left out, and the order does not matter."""
    few = texts(20)

    found = diversity(few, EN)

    assert found.self_similarity == pytest.approx(fmean(similarity(*pair) for pair in combinations(few, 2)))
    assert found.self_similarity == pytest.approx(diversity(few[::-1], EN).self_similarity)


def test_many_texts_are_compared_by_a_sample_that_stays_the_same():
    """Near the mean over all pairs, in a bounded number of comparisons."""
    many = texts(120) + ["one and the same text"] * 80
    assert len(many) * (len(many) - 1) / 2 > MOST_PAIRS

    found = diversity(many, EN)

    assert found == diversity(many, EN)
    exact = fmean(similarity(*pair) for pair in combinations(many, 2))
    assert found.self_similarity == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("few", [[], ["one"]])
def test_one_text_has_no_diversity(few):
    """It is not zero either."""
    found = diversity(few, EN)

    assert (found.num, found.distinct, found.self_similarity) == (len(few), None, None)
