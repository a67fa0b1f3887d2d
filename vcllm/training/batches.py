"""Which rows make a step, and how a micro-batch of them lies in memory: end to end, without padding.

Shapes: N tokens of all rows together, M learned tokens, R rows, S sequences (one a row, two where it forks),
K criteria of a critic.
The plan depends on the lengths, the seed and nothing else: the step is all a checkpoint remembers of the data.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcllm.contracts.recipes import Optim
from vcllm.training.corpus import Corpus
from vcllm.training.layout import Layout

Rows = NDArray[np.int64]


class Plan:
    """The rows of every optimiser step, over all epochs; a fraction of an epoch is a prefix of it."""

    def __init__(self, lengths: NDArray[np.int32], optim: Optim, seed: int) -> None:
        self.lengths, self.batch_tokens, self.seed = lengths, optim.batch_tokens, seed
        self._epoch = lru_cache(maxsize=1)(self._plan_epoch)
        self.steps_before = [0]
        for number in range(math.ceil(optim.epochs)):
            if optim.max_steps and self.steps_before[-1] >= optim.max_steps:
                break
            share = min(1.0, optim.epochs - number)
            steps = len(self._epoch(number))
            self.steps_before.append(self.steps_before[-1] + max(1, round(share * steps)))
        self.num_steps = min(self.steps_before[-1], optim.max_steps or self.steps_before[-1])

    def rows(self, step: int) -> Rows:
        """Row numbers of a step."""
        epoch = next(number for number, before in enumerate(self.steps_before[1:]) if step < before)
        return self._epoch(epoch)[step - self.steps_before[epoch]]

    def _plan_epoch(self, epoch: int) -> list[Rows]:
        """Rows in random order, cut into steps of near `batch_tokens`, all of like size.

        Rows of like length meet in a micro-batch only: whole steps of them learn measurably slower (docs/log.md).
        """
        seed = random.Random(f"{self.seed}-{epoch}").getrandbits(64)
        order = np.random.default_rng(seed).permutation(len(self.lengths))
        middles = np.cumsum(self.lengths[order], dtype=np.int64) - self.lengths[order] / 2
        total = int(self.lengths.sum())
        num_steps = max(1, round(total / self.batch_tokens))
        cuts = np.searchsorted(middles, np.arange(1, num_steps) * (total / num_steps))
        return [rows for rows in np.split(order, cuts) if len(rows)]


def share(
    rows: Rows, lengths: NDArray[np.int32], num_parts: int, part: int, most_tokens: float, spread: float
) -> list[Rows]:
    """One process's micro-batches of a step; every process gets equally many, an empty one where rows run out.

    Rows are dealt longest first to whoever has fewest tokens, then cut so that no micro-batch holds more than
    `most_tokens` (a single longer row excepted), nor a row that is over `spread` times as long as another.
    """
    hands: list[list[int]] = [[] for _ in range(num_parts)]
    held = [0] * num_parts
    for row in rows[np.argsort(-lengths[rows], kind="stable")]:
        poorest = held.index(min(held))
        hands[poorest].append(int(row))
        held[poorest] += int(lengths[row])
    cut = [_cut_hand(hand, lengths, most_tokens, spread) for hand in hands]
    most = max(len(batches) for batches in cut)
    return [*cut[part], *([np.array([], np.int64)] * (most - len(cut[part])))]


def _cut_hand(hand: list[int], lengths: NDArray[np.int32], most_tokens: float, spread: float) -> list[Rows]:
    batches: list[list[int]] = [[]]
    held = 0
    for row in reversed(hand):
        if batches[-1] and (held + lengths[row] > most_tokens or lengths[row] > spread * lengths[batches[-1][0]]):
            batches.append([])
            held = 0
        batches[-1].append(row)
        held += int(lengths[row])
    return [np.array(batch, np.int64) for batch in batches]


@dataclass(frozen=True)
class Batch:
    """Rows end to end. Learned token m is predicted at position `source_M[m]` of the N hidden states."""

    ids_N: Tensor
    position_N: Tensor
    layout: Layout
    source_M: Tensor
    target_M: Tensor
    sequence_M: Tensor
    """The sequence a learned token belongs to: those of row r begin at `first_R[r]`."""
    first_R: Tensor
    forked_R: Tensor
    weight_R: Tensor
    label_R: Tensor
    score_RK: Tensor
    """By criterion, for a classifier; NaN where a row has none."""
    last_R: Tensor
    """Position of each row's last token, where a classifier reads."""
    rows: tuple[int, ...]

    @property
    def num_sequences(self) -> int:
        return len(self.rows) + int(self.forked_R.sum())


def make_batch(corpus: Corpus, rows: Rows, device: torch.device) -> Batch:
    """Lay rows end to end on `device`."""
    table = corpus.rows[rows]
    start, length, prefix, fork = (table[name].astype(np.int64) for name in ("start", "length", "prefix", "fork"))
    offset = np.cumsum(length) - length
    within = np.arange(length.sum()) - np.repeat(offset, length)
    where = np.repeat(start, length) + within
    second = within >= np.repeat(fork, length)
    position = within - np.where(second, np.repeat(fork - prefix, length), 0)
    (learned,) = np.nonzero(corpus.learned[where])
    opens_second = within[learned] == np.repeat(fork, length)[learned]
    source = np.where(opens_second, np.repeat(offset + prefix, length)[learned], learned) - 1
    forked = fork < length
    first = np.cumsum(1 + forked) - (1 + forked)
    sequence = np.repeat(first, length)[learned] + second[learned]
    ids = corpus.ids[where].astype(np.int64)

    def tensor(values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

    return Batch(
        ids_N=tensor(ids),
        position_N=tensor(position),
        layout=Layout(length, prefix, fork, device),
        source_M=tensor(source),
        target_M=tensor(ids[learned]),
        sequence_M=tensor(sequence),
        first_R=tensor(first),
        forked_R=tensor(forked),
        weight_R=tensor(table["weight"]),
        label_R=tensor(table["label"].astype(np.int64)),
        score_RK=tensor(table["scores"]),
        last_R=tensor(offset + length - 1),
        rows=tuple(int(row) for row in rows),
    )
