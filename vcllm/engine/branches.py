"""Several continuations of one beginning, read side by side in one pass over a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vcllm.engine.cache import SlotCache
from vcllm.engine.forward import Forward

# Shapes: B rows, T new tokens, K of them where logits are kept, V vocabulary.

Tokens = tuple[int, ...]

BRANCHED_PER_PASS = 256
"""Tokens of one head's continuations; what a token may not see is computed all the same."""


class Branches:
    """What has to be read behind one head, so that every continuation but its last token has been.

    They are read side by side, and none sees another; one that is the beginning of another is read as that.
    """

    def __init__(self, tails: Sequence[Tokens]) -> None:
        self.groups: list[list[Tokens]] = [[]]
        """What is read in one pass."""
        self._kept: dict[Tokens, tuple[int, int]] = {(): (0, 0)}
        """For every beginning of a continuation the group that has it, and where; 0 is the head's end."""
        size = 0
        for text in sorted({tail[:-1] for tail in tails if len(tail) > 1}, key=len, reverse=True):
            if text in self._kept:
                continue
            if size and size + len(text) > BRANCHED_PER_PASS:
                self.groups.append([])
                size = 0
            number = len(self.groups) - 1
            for end in range(1, len(text) + 1):
                self._kept.setdefault(text[:end], (number, size + end))
            self.groups[-1].append(text)
            size += len(text)

    @property
    def longest(self) -> int:
        """Tokens of the largest group."""
        return max(sum(map(len, group)) for group in self.groups)

    def text(self, number: int, head: Tokens, known: int) -> Text:
        """A group behind its head; the first has to read the head itself, of which so many tokens are known."""
        text = Text(known, head[known:]) if number == 0 else Text(len(head), ())
        for branch in self.groups[number] if number < len(self.groups) else ():
            text.branch(branch)
        return text

    def places(self, tail: Tokens, number: int) -> Iterator[tuple[int, int]]:
        """The tokens of a continuation that follow something in this group, each with what it follows."""
        for end, token in enumerate(tail):
            group, kept = self._kept[tail[:end]]
            if group == number:
                yield kept, token


class Text:
    """New tokens of one row: the rest of a head, then branches from its end. Logits are kept at that end and behind."""

    def __init__(self, start: int, rest: Tokens) -> None:
        """start: how many tokens the row has."""
        self.start = start
        self.end = start + len(rest)
        self.ids = list(rest)
        self.positions = list(range(start, self.end))
        self.hidden = [(0, 0)] * len(rest)
        self.keep = [max(0, len(rest) - 1)]

    def branch(self, tokens: Tokens) -> None:
        place = self.start + len(self.ids)
        self.keep += range(len(self.ids), len(self.ids) + len(tokens))
        self.ids += tokens
        self.positions += range(self.end, self.end + len(tokens))
        self.hidden += [(self.end, place)] * len(tokens)

    def pad(self, width: int, num_kept: int) -> None:
        """Up to so many tokens, which nothing sees."""
        missing = width - len(self.ids)
        self.positions += range(self.start + len(self.ids), self.start + width)
        self.ids += [0] * missing
        self.hidden += [(0, 0)] * missing
        self.keep += [0] * (num_kept - len(self.keep))


def read(forward: Forward, cache: SlotCache, texts: Sequence[Text], device: torch.device) -> Tensor:
    """Logits [B, K, V] where they are kept; text b goes into row b of the cache."""
    width, num_kept = max(len(text.ids) for text in texts), max(len(text.keep) for text in texts)
    has_branches = any(len(text.keep) > 1 for text in texts)
    for text in texts:
        text.pad(width, num_kept)

    def tensor(of_each: list[Any]) -> Tensor:
        return torch.tensor(of_each, dtype=torch.long, device=device)

    places_BT = tensor([text.start for text in texts])[:, None] + torch.arange(width, device=device)
    hidden_BT2 = tensor([text.hidden for text in texts]) if has_branches else None
    cache.aim(places_BT, max(text.start for text in texts) + width, hidden_BT2=hidden_BT2)
    ids_BT, positions_BT = tensor([text.ids for text in texts]), tensor([text.positions for text in texts])
    return forward(cache, ids_BT, positions_BT, tensor([text.keep for text in texts]))
