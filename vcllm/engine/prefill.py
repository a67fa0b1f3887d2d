"""Prompts being read before their rows go live, a bounded piece per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vcllm.engine.cache import SlotCache
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

    def piece(self, watched: bool) -> int:
        """Prompt tokens to read in one step."""
        return self.prefill_tokens if watched else UNWATCHED * self.prefill_tokens

    def fit(self, request: Request) -> bool:
        """Whether the request could run if it were alone."""
        num_rows = len(request.sequences)
        return num_rows <= self.max_rows and num_rows * request.length <= self.max_tokens


class Prefill:
    """Prompts read together, in a cache of their own, so that the live rows stay side by side."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        self.cache = SlotCache()
        self.length = max(len(request.prompt) for request in requests)
        self.done = 0
        """Positions read so far."""
        self.cache.reserve(len(requests), self.length)

    @property
    def wanted(self) -> bool:
        return any(request.live for request in self.requests)

    @property
    def last_P(self) -> np.ndarray:
        """Where each prompt's last token is."""
        return np.array([len(request.prompt) - 1 for request in self.requests])

    def ids_PT(self, start: int, end: int) -> np.ndarray:
        """One piece, padded on the right; what attends to padding is never read."""
        ids = np.zeros((len(self.requests), end - start), dtype=np.int64)
        for row, request in enumerate(self.requests):
            piece = request.prompt[start:end]
            ids[row, : len(piece)] = piece
        return ids


def admit(waiting: Waiting, rows: Rows, limits: Limits) -> Prefill | None:
    """The next prompts in their order, as many as fit beside the live rows; nobody overtakes."""
    admitted: list[Request] = []
    num_rows, longest, width = len(rows), rows.longest, 0
    while (request := waiting.first()) is not None:
        num_rows += len(request.live)
        longest, width = max(longest, request.length), max(width, len(request.prompt))
        too_wide = admitted and width * (len(admitted) + 1) > limits.piece(rows.watched)
        if too_wide or num_rows > limits.max_rows or num_rows * longest > limits.max_tokens:
            break
        admitted.append(waiting.pop())
    return Prefill(admitted) if admitted else None
