"""Keys and values of prompt beginnings that were read before: a system prompt, a charter, a rubric is read once.

Kept in blocks of tokens; a block is known by everything before it as well, for its keys and values depend on that. One
cache belongs to one loaded model, so a new version never meets the blocks of another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from vcllm.engine.cache import Block, SlotCache

BLOCK = 32
"""Tokens. What is shorter is read again."""

Key = bytes
"""Digest of a block and all before it; one that can be guessed would let a prompt meet another one's blocks."""


class PrefixCache:
    """The blocks used last."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_hits = 0
        """Tokens that did not have to be read."""
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        """Least recently used first, and a prompt's end before its beginning, without which nobody would find it."""

    def __len__(self) -> int:
        """Tokens held."""
        return len(self._blocks) * BLOCK

    def find(self, prompt: Sequence[int]) -> list[Block]:
        """The blocks the prompt begins with; they never cover its last token, which has to be read."""
        known = list(takewhile(self._blocks.__contains__, self._keys(prompt)))
        for key in reversed(known):
            self._blocks.move_to_end(key)
        self.num_hits += len(known) * BLOCK
        return [self._blocks[key] for key in known]

    def missing(self, prompt: Sequence[int]) -> tuple[int, Key | None]:
        """How many tokens would have to be read, and the first block that reading them brings; None: it brings none."""
        known = 0
        for key in self._keys(prompt):
            if key not in self._blocks:
                return len(prompt) - known, key
            known += BLOCK
        return len(prompt) - known, None

    def keep(self, prompt: Sequence[int], cache: SlotCache, row: int) -> None:
        """Remember a prompt that has been read into this row of a cache, or as much of it as there is room for."""
        for number, key in reversed(list(enumerate(self._keys(prompt)))):
            if key not in self._blocks:
                self._blocks[key] = cache.read(row, slice(number * BLOCK, (number + 1) * BLOCK))
            self._blocks.move_to_end(key)
        while len(self) > self.max_tokens:
            self._blocks.popitem(last=False)

    def _keys(self, prompt: Sequence[int]) -> Iterator[Key]:
        """Of the blocks that may ever be here."""
        return islice(keys_of(prompt), self.max_tokens // BLOCK)


def keys_of(prompt: Sequence[int]) -> Iterator[Key]:
    """Of every whole block but one that would end the prompt."""
    digest = hashlib.blake2b(digest_size=16)
    for end in range(BLOCK, len(prompt), BLOCK):
        digest.update(array("q", prompt[end - BLOCK : end]).tobytes())
        yield digest.digest()
