"""Prompts being read before their rows go live, a bounded piece per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vcllm.engine.cache import SlotCache
from vcllm.engine.prefix import BLOCK, PrefixCache
from vcllm.engine.sequence import Request, Rows, Waiting

# Shapes: P prompts, T positions.

UNWATCHED = 8
"""Times as much is read per step where all live rows are bulk work: throughput matters, gaps do not."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be in the batch at once."""

    max_rows: int = 256
    max_tokens: int = 131_072
    """Rows times the positions the longest of them may need: bounds the memory of the cache."""
    prefill_tokens: int = 512
    """Prompt tokens per step while somebody watches a row grow; a longer prompt is read in pieces."""

    prefix_tokens: int = 16_384
    """Kept of prompts that were read, for others that begin alike; in memory of their own."""

    def piece(self, watched: bool) -> int:
        """Prompt tokens to read in one step."""
        return self.prefill_tokens if watched else UNWATCHED * self.prefill_tokens

    def fit(self, request: Request) -> bool:
        """Whether the request could run if it were alone."""
        num_rows = len(request.sequences)
        return num_rows <= self.max_rows and num_rows * request.length <= self.max_tokens


class Prefill:
    """Prompts read together, in a cache of their own, so that the live rows stay side by side.

    What the prefix cache has of a prompt is copied; new positions are counted from there.
    """

    def __init__(self, requests: list[Request], prefixes: PrefixCache) -> None:
        self.requests = requests
        self.cache = SlotCache()
        blocks = [prefixes.find(request.prompt) for request in requests]
        self.known_P = np.array([BLOCK * len(each) for each in blocks])
        """Positions that need not be read."""
        self.length = int(self.last_P.max()) + 1
        """New positions of the row that has most of them."""
        self.done = 0
        """New positions read so far."""
        self.cache.reserve(len(requests), self.num_positions)
        self.cache.begin(blocks)

    @property
    def num_positions(self) -> int:
        """Of the cache."""
        return int(self.known_P.max()) + self.length

    @property
    def wanted(self) -> bool:
        return any(request.live for request in self.requests)

    @property
    def last_P(self) -> np.ndarray:
        """Where each prompt's last token is, in new positions."""
        return np.array([len(request.prompt) - 1 for request in self.requests]) - self.known_P

    def position_PT(self, start: int, end: int) -> np.ndarray:
        """Where one piece of new positions lies."""
        return self.known_P[:, None] + np.arange(start, end)

    def ids_PT(self, start: int, end: int) -> np.ndarray:
        """One piece, padded on the right; what attends to padding is never read."""
        ids = np.zeros((len(self.requests), end - start), dtype=np.int64)
        for row, (request, known) in enumerate(zip(self.requests, self.known_P, strict=True)):
            piece = request.prompt[known + start : known + end]
            ids[row, : len(piece)] = piece
        return ids

    def remember(self, prefixes: PrefixCache) -> None:
        """Keep what has been read for prompts that begin alike."""
        for row, request in enumerate(self.requests):
            prefixes.keep(request.prompt, self.cache, row)


def admit(waiting: Waiting, rows: Rows, limits: Limits, prefixes: PrefixCache) -> Prefill | None:
    """The next prompts in their order, as many as fit beside the live rows; nobody overtakes.

    A prompt that begins like one that is about to be read waits until that has been read.
    """
    admitted: list[Request] = []
    to_be_read: set[bytes] = set()
    num_rows, longest, width = len(rows), rows.longest, 0
    while (request := waiting.first()) is not None:
        num_rows += len(request.live)
        new, first_block = prefixes.missing(request.prompt)
        longest, width = max(longest, request.length), max(width, new)
        too_wide = admitted and width * (len(admitted) + 1) > limits.piece(rows.watched)
        too_many = num_rows > limits.max_rows or num_rows * longest > limits.max_tokens
        if too_wide or too_many or first_block in to_be_read:
            break
        if first_block is not None:
            to_be_read.add(first_block)
        admitted.append(waiting.pop())
    return Prefill(admitted, prefixes) if admitted else None
