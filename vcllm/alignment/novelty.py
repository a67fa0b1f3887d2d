"""How near queries of one language come to each other, by their characters and by where a model places them.

    similarity = J + (1 - J) * MEANING * C, in [0, 1]

J is the Jaccard overlap of the sets of character n-grams. C is the cosine of the two embeddings, 0 where it is negative
or one of them is missing. So equal texts have 1, texts that share no word but say the same at most `MEANING`, and an
embedding can bring two texts nearer but never apart.

Embeddings of small models fill a narrow cone in which any two are nearly parallel (Ethayarajh 2019). What all share
says nothing, so the mean over all vectors of the language that are at hand is taken from each before the cosine (Mu and
Viswanath 2018, without their second step). They must come from one version of one model; a vector of another length
than the others is passed over.

Does not know what won or what is kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING

from vcllm.contracts.archive import LanguageDiversity
from vcllm.contracts.base import Language

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

# Shapes: B samples of a batch, N with those that are remembered before them, P of these with a vector, E of a vector,
# G n-grams at once, X times that a text has one.

NGRAM = {Language.ZH: 2, Language.EN: 3}
"""Characters of an n-gram: most Chinese words have two, and English ones are told apart by three."""
MEANING = 0.5
"""How near two texts can come by their embeddings alone."""
FEWEST_VECTORS = 8
"""Below it their mean is no centre, and texts are compared by their characters alone."""
LEAST_NORM = 1e-6
"""A vector that is no farther from the mean than this points nowhere."""
GRAMS_AT_ONCE = 4096
"""Bounds the memory of a comparison."""
MOST_PAIRS = 2000
"""Of a round's attacks that are compared for its self-similarity."""


def ngrams(text: str, n: int) -> list[str]:
    """Character n-grams in order, whatever the case; beginning and end of the text count as blanks."""
    padded = f"{' ' * (n - 1)}{text.lower()} "
    return [padded[at : at + n] for at in range(len(padded) - n + 1)]


def similarity(first: str, second: str, n: int = 3) -> float:
    """Jaccard overlap of character n-grams, in [0, 1]; works for Chinese and English alike."""
    return _overlap(set(ngrams(first, n)), set(ngrams(second, n)))


def _overlap(one: Collection[str], other: set[str]) -> float:
    shared = len(other.intersection(one))
    return shared / (len(one) + len(other) - shared)


@dataclass(frozen=True)
class Sample:
    """A text as it is compared."""

    text: str
    embedding: Sequence[float] = ()
    """Empty: none was taken."""


class Neighbours:
    """Remembered samples of one language; a batch is held against all of them at once.

    Every text is cut into n-grams once, and all pairs are compared in a few products of matrices.
    """

    def __init__(self, language: Language, samples: Iterable[Sample] = ()) -> None:
        self.n = NGRAM[language]
        self.samples = list(samples)
        self._grams = [set(ngrams(sample.text, self.n)) for sample in self.samples]

    def nearest(self, batch: Sequence[Sample], joins: Callable[[int, float], bool]) -> list[float]:
        """Of each in turn the highest similarity to what is remembered, and to those of the batch that have joined.

        joins: whether one joins for the rest of the batch, from its place and what was found for it. What is remembered
        stays as it is.
        """
        if not batch:
            return []
        similarity_BN = self._similarity(batch)
        num_known = len(self.samples)
        found: list[float] = similarity_BN[:, :num_known].max(1, initial=0.0).tolist()
        joined: list[int] = []
        for place in range(len(batch)):
            if joined:
                found[place] = max(found[place], float(similarity_BN[place, joined].max()))
            if joins(place, found[place]):
                joined.append(num_known + place)
        return found

    def _similarity(self, batch: Sequence[Sample]) -> Matrix:
        """[B, N], of the batch with what is remembered and with itself."""
        grams_B = [set(ngrams(sample.text, self.n)) for sample in batch]
        overlap_BN = _overlaps(grams_B, [*self._grams, *grams_B])
        cosine_BN = _cosines(len(batch), [*self.samples, *batch])
        return overlap_BN if cosine_BN is None else overlap_BN + (1 - overlap_BN) * MEANING * cosine_BN


def _overlaps(grams_B: Sequence[set[str]], grams_N: Sequence[set[str]]) -> Matrix:
    """The Jaccard overlap of each of a batch with each of the others, [B, N]; the batch is the last of the others."""
    import numpy as np  # not needed for what else is here

    columns = {gram: number for number, gram in enumerate(set[str]().union(*grams_B))}
    found = [[columns[gram] for gram in grams if gram in columns] for grams in grams_N]
    column_X = np.fromiter(chain.from_iterable(found), np.int64)
    row_X = np.repeat(np.arange(len(found)), [len(own) for own in found])
    order_X = np.argsort(column_X)
    column_X, row_X = column_X[order_X], row_X[order_X]
    shared_BN = np.zeros((len(grams_B), len(grams_N)))
    for start in range(0, len(columns), GRAMS_AT_ONCE):
        here = slice(*np.searchsorted(column_X, (start, start + GRAMS_AT_ONCE)))
        has_NG = np.zeros((len(grams_N), GRAMS_AT_ONCE), np.float32)
        has_NG[row_X[here], column_X[here] - start] = 1
        shared_BN += has_NG[-len(grams_B) :] @ has_NG.T
    size_N = np.array([len(grams) for grams in grams_N])
    overlap_BN: Matrix = shared_BN / (size_N[-len(grams_B) :, None] + size_N - shared_BN)
    return overlap_BN


def _cosines(num_batch: int, samples: Sequence[Sample]) -> Matrix | None:
    """[B, N] from 0 to 1, of the last samples with all; None: there are too few vectors like theirs."""
    size = next((len(sample.embedding) for sample in samples[-num_batch:] if sample.embedding), 0)
    present = [row for row, sample in enumerate(samples) if size and len(sample.embedding) == size]
    if len(present) < FEWEST_VECTORS:
        return None
    import numpy as np

    vectors_PE = np.array([samples[row].embedding for row in present])
    vectors_PE -= vectors_PE.mean(0)
    vectors_PE /= np.maximum(np.linalg.norm(vectors_PE, axis=1, keepdims=True), LEAST_NORM)
    vectors_NE = np.zeros((len(samples), size), np.float32)
    vectors_NE[present] = vectors_PE
    cosine_BN: Matrix = np.clip(vectors_NE[-num_batch:] @ vectors_NE.T, 0, 1).astype(np.float64)
    return cosine_BN


def diversity(texts: Sequence[str], language: Language) -> LanguageDiversity:
    """How unlike each other these texts are, by their characters; of many, `MOST_PAIRS` pairs are compared.

    `distinct` is distinct-n (Li et al. 2016) over characters. The same texts in the same order give the same figures.
    """
    num = len(texts)
    if num < 2:
        return LanguageDiversity(num=num, distinct=None, self_similarity=None)
    cut = [ngrams(text, NGRAM[language]) for text in texts]
    sets = [set(grams) for grams in cut]
    pairs = list(combinations(range(num), 2)) if num * (num - 1) // 2 <= MOST_PAIRS else _some_pairs(num)
    return LanguageDiversity(
        num=num,
        distinct=len(set[str]().union(*sets)) / sum(map(len, cut)),
        self_similarity=sum(_overlap(sets[one], sets[other]) for one, other in pairs) / len(pairs),
    )


def _some_pairs(num: int) -> list[tuple[int, int]]:
    chance = random.Random(num)
    drawn = [chance.sample(range(num), 2) for _ in range(MOST_PAIRS)]
    return [(one, other) for one, other in drawn]
