"""Keys and values of prompt beginnings that were read before: a system prompt, a charter, a rubric is read once.

Kept in blocks of tokens; a block is known by everything before it as well, for its keys and values depend on that. One
cache belongs to one loaded model, so a new version never meets the blocks of another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

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
        """Least recently used first."""

    def __len__(self) -> int:
        """Tokens held."""
        return len(self._blocks) * BLOCK

    def find(self, prompt: Sequence[int]) -> list[Block]:
        """The blocks the prompt begins with; they never cover its last token, which has to be read."""
        found = []
        for key in keys_of(prompt):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        self.num_hits += len(found) * BLOCK
        return found

    def missing(self, prompt: Sequence[int]) -> tuple[int, Key | None]:
        """How many tokens would have to be read, and the first block that is not here; None: all whole ones are."""
        known = 0
        for key in keys_of(prompt):
            if key not in self._blocks:
                return len(prompt) - known, key
            known += BLOCK
        return len(prompt) - known, None

    def keep(self, prompt: Sequence[int], cache: SlotCache, row: int) -> None:
        """Remember a prompt that has been read into this row of a cache."""
        for number, key in enumerate(keys_of(prompt)):
            if key in self._blocks:
                continue
            here = slice(number * BLOCK, (number + 1) * BLOCK)
            self._blocks[key] = cache.read(row, here)
        while len(self) > self.max_tokens:
            self._blocks.popitem(last=False)


def keys_of(prompt: Sequence[int]) -> Iterator[Key]:
    """Of every whole block but one that would end the prompt."""
    digest = hashlib.blake2b(digest_size=16)
    for end in range(BLOCK, len(prompt), BLOCK):
        digest.update(array("q", prompt[end - BLOCK : end]).tobytes())
        yield digest.digest()
