"""Reading a model instead of letting it write: log-probabilities of texts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from vcllm.engine.branches import Branches, Text, Tokens, read
from vcllm.engine.cache import SlotCache
from vcllm.engine.forward import Forward
from vcllm.engine.prefix import BLOCK, PrefixCache

# Shapes: B texts, K tokens where logits are kept, V vocabulary.

TOKENS_PER_PASS = 8192
SCORED_PER_PASS = 1024
"""New tokens, padding included, that are read at once while others may wait for a step."""
DONE = object()
"""What an iterator of passes has instead of a further one."""
POSITIONS_STEP = 256
"""A cache for the rows has so many more positions at least, so that the next rows fit as well."""
SHORTEST_SHARED = 16
"""Tokens; a shorter common beginning is read with each text."""
LOGITS_PER_PASS = 1 << 26
"""Bounds the memory of one forward pass over a large vocabulary (256 MiB in float32)."""

Item = tuple[list[int], list[int]]
"""Token ids of a prompt, never empty, and of what follows it."""


class Reading(Protocol):
    """Something to be read pass by pass, so that whoever runs it can do other work in between."""

    owner: Any
    """Whoever wants the result; only handed back."""
    cancelled: bool

    def passes(
        self, forward: Forward, device: torch.device, vocab_size: int, prefixes: PrefixCache | None = None
    ) -> Iterator[None]:
        """Do the work; one forward pass between two items of the iterator.

        prefixes: what was read for others, where a prompt's beginning may be found, and will be left.
        """
        ...


class Scoring:
    """A `Reading` for log-probabilities of continuations.

    What all heads begin with is read once, and so is a head, together with its continuations; one that is the beginning
    of another, or differs from it in its last token only, needs no reading of its own. A last token is never read.
    """

    def __init__(self, items: Sequence[Item], owner: Any = None) -> None:
        self.owner = owner
        self.cancelled = False
        self.scores = [0.0] * len(items)
        """Summed, natural log, temperature 1, in order; an empty continuation scores 0. Complete when `passes` ends."""
        self._tails: dict[Tokens, list[tuple[int, Tokens]]] = {}
        """Continuations, each with its index, by head."""
        for index, (head, tail) in enumerate(items):
            if tail:
                self._tails.setdefault(tuple(head), []).append((index, tuple(tail)))

    @torch.inference_mode()
    def passes(
        self, forward: Forward, device: torch.device, vocab_size: int, prefixes: PrefixCache | None = None
    ) -> Iterator[None]:
        """Do the work."""
        heads = list(self._tails)
        begun = Begun(common_beginning(heads), device, PrefixCache(0) if prefixes is None else prefixes)
        yield from begun.read(forward)
        branches = [Branches([tail for _, tail in self._tails[head]]) for head in heads]
        num_kept = 1 + max((branch.longest for branch in branches), default=0)
        lengths = [len(head) - len(begun.tokens) + branch.longest for head, branch in zip(heads, branches, strict=True)]
        for rows in by_length(lengths, max(1, LOGITS_PER_PASS // num_kept // vocab_size), SCORED_PER_PASS):
            yield from self._score([heads[row] for row in rows], [branches[row] for row in rows], begun, forward)

    def _score(self, heads: list[Tokens], branches: list[Branches], begun: Begun, forward: Forward) -> Iterator[None]:
        """The continuations of these heads."""
        width = max(len(head) + each.longest for head, each in zip(heads, branches, strict=True))
        cache = begun.cache_for(len(heads), width)
        known = len(begun.tokens)
        for number in range(max(len(each.groups) for each in branches)):
            texts = [each.text(number, head, known) for head, each in zip(heads, branches, strict=True)]
            wanted = [
                (row, kept, token, index)
                for row, head in enumerate(heads)
                for index, tail in self._tails[head]
                for kept, token in branches[row].places(tail, number)
            ]
            rows, kept, tokens, indices = zip(*wanted, strict=True)
            logits_BKV = read(forward, cache, texts, begun.device).float()
            found = logits_BKV[rows, kept, tokens] - logits_BKV.logsumexp(-1)[rows, kept]
            for index, logprob in zip(indices, found.tolist(), strict=True):
                self.scores[index] += logprob
            yield


class Begun:
    """What all heads begin with, read once."""

    def __init__(self, tokens: Tokens, device: torch.device, prefixes: PrefixCache) -> None:
        self.tokens = tokens
        self.device = device
        self.prefixes = prefixes
        self.cache = SlotCache()
        self._rows = SlotCache()

    def read(self, forward: Forward) -> Iterator[None]:
        blocks = self.prefixes.find(self.tokens)
        self.cache.reserve(1, max(1, len(self.tokens)))
        self.cache.begin([blocks])
        for start in range(BLOCK * len(blocks), len(self.tokens), SCORED_PER_PASS):
            read(forward, self.cache, [Text(start, self.tokens[start : start + SCORED_PER_PASS])], self.device)
            yield
        self.prefixes.keep(self.tokens, self.cache, 0)

    def cache_for(self, num_rows: int, num_positions: int) -> SlotCache:
        """A cache whose rows all hold it; the last one, where that is large enough."""
        slots = self._rows.slots
        if num_rows > slots.num_rows or num_positions > slots.num_positions:
            self._rows = SlotCache()
            self._rows.reserve(num_rows, -(-num_positions // POSITIONS_STEP) * POSITIONS_STEP)
            if self.tokens:
                self._rows.join(self.cache, [0] * num_rows, at=0)
        return self._rows


def common_beginning(heads: Sequence[Tokens]) -> Tokens:
    """Of all heads, but for the last token of the shortest, which has to be read with its own; empty if too short."""
    if not heads:
        return ()
    common = os.path.commonprefix([min(heads), max(heads)])[: min(map(len, heads)) - 1]
    return tuple(common) if len(common) >= SHORTEST_SHARED else ()


class Scorings:
    """Those in line; they take turns, pass by pass, so that a large one delays a small one by one pass only."""

    def __init__(
        self, forward: Forward, device: torch.device, vocab_size: int, prefixes: PrefixCache | None = None
    ) -> None:
        self._how = forward, device, vocab_size, prefixes
        self._line: deque[tuple[Reading, Iterator[None]]] = deque()
        self._done: list[Reading] = []

    def __len__(self) -> int:
        return len(self._line)

    def add(self, reading: Reading) -> None:
        self._line.append((reading, reading.passes(*self._how)))

    def step(self) -> None:
        """One pass of whoever is next."""
        while self._line:
            reading, passes = self._line[0]
            more = not reading.cancelled and next(passes, DONE) is not DONE
            self._line.popleft()
            if more:
                self._line.append((reading, passes))
                return
            if not reading.cancelled:
                self._done.append(reading)

    def take_done(self) -> list[Reading]:
        done, self._done = self._done, []
        return done

    def clear(self) -> list[Reading]:
        """Forget all; those that were in line."""
        left = [reading for reading, _ in self._line]
        self._line.clear()
        return left


def largest_gap(model: Any, item: Item) -> float:
    """How far, in logits, the continuation ever is from the model's favourite; 0: it is its greedy text."""
    head, tail = item
    ids_1T = torch.tensor([head + tail[:-1]], device=model.device)
    keep_1K = torch.arange(len(head) - 1, len(head) + len(tail) - 1, device=model.device)[None]
    with torch.inference_mode():
        logits_KV = model(input_ids=ids_1T, use_cache=False, logits_to_keep=keep_1K).logits[0]
    chosen_K1 = logits_KV.gather(-1, torch.tensor(tail, device=model.device)[:, None])
    return float((logits_KV.amax(-1) - chosen_K1[:, 0]).max())


def by_length(
    lengths: Sequence[int], max_rows: int = 1 << 30, max_tokens: int = TOKENS_PER_PASS
) -> Iterator[list[int]]:
    """Indices in passes of similar length, to spend little on padding; each within rows and padded tokens."""
    pending: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = len(pending) >= max_rows or (len(pending) + 1) * lengths[index] > max_tokens
        if pending and full:
            yield pending
            pending = []
        pending.append(index)
    if pending:
        yield pending
