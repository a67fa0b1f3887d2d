"""Reading a model instead of letting it write: log-probabilities of texts, a classifier's probabilities."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vcllm.contracts.critiques import SCORE_PREFIX
from vcllm.engine.cache import SlotCache
from vcllm.engine.forward import Forward
from vcllm.engine.prompts import render, without_special_tokens

# Shapes: B texts, T tokens, K of them where logits are kept, V vocabulary, C labels of a classifier.

TOKENS_PER_PASS = 8192
SCORED_PER_PASS = 1024
"""New tokens, padding included, that are read at once while others may wait for a step."""
DONE = object()
"""What an iterator of passes has instead of a further one."""
SHORTEST_SHARED = 16
"""Tokens; a shorter common beginning is read with each text."""
Tokens = tuple[int, ...]

LOGITS_PER_PASS = 1 << 26
"""Bounds the memory of one forward pass over a large vocabulary (256 MiB in float32)."""

Item = tuple[list[int], list[int]]
"""Token ids of a prompt, never empty, and of what follows it."""


class Scoring:
    """Log-probabilities of continuations, found pass by pass, so that whoever runs it can do other work in between.

    Nothing is read twice: what all heads begin with, a head, and what its continuations have in common are read once,
    and the last token of a continuation is not read at all.
    """

    def __init__(self, items: Sequence[Item], owner: Any = None) -> None:
        """owner: whoever wants the result; only handed back."""
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
    def passes(self, forward: Forward, device: torch.device, vocab_size: int) -> Iterator[None]:
        """Do the work; one forward pass between two items of the iterator."""
        heads = list(self._tails)
        begun = Begun(common_beginning(heads), device)
        yield from begun.read(forward)
        longest_tail = max((len(tail) for tails in self._tails.values() for _, tail in tails), default=0)
        num_new = max((len(head) for head in heads), default=0) - len(begun.tokens)
        max_rows = max(1, min(LOGITS_PER_PASS // (longest_tail or 1) // vocab_size, SCORED_PER_PASS // (num_new or 1)))
        for rows in by_length([len(head) + longest_tail for head in heads], max_rows):
            yield from self._score([heads[row] for row in rows], begun, forward)

    def _score(self, heads: list[Tokens], begun: Begun, forward: Forward) -> Iterator[None]:
        """The continuations of these heads."""
        tails = [self._tails[head] for head in heads]
        longest = max(len(tail) for each in tails for _, tail in each)
        reader = Reader(forward, begun.cache_for(len(heads), max(map(len, heads)) + longest), begun.device)
        known = len(begun.tokens)
        last_B = [len(head) - known - 1 for head in heads]
        logprobs_B1V = reader(
            [head[known:] for head in heads], [known] * len(heads), keep_BK=[[last] for last in last_B]
        )
        for row, each in enumerate(tails):
            for index, tail in each:
                self.scores[index] = logprobs_B1V[row, 0, tail[0]].item()
        yield
        branches = [Branches([tail for _, tail in each]) for each in tails]
        for number in range(max(len(branch.texts) for branch in branches)):
            texts = [branch.texts[number] if number < len(branch.texts) else () for branch in branches]
            width = max(map(len, texts))
            logprobs_BTV = reader(texts, [len(head) for head in heads], keep_BK=[list(range(width)) for _ in heads])
            for row, each in enumerate(tails):
                for index, tail in each:
                    if len(tail) > 1 and branches[row].of[tail[:-1]] == number:
                        places = list(range(len(tail) - 1))
                        self.scores[index] += logprobs_BTV[row, places, list(tail[1:])].sum().item()
            yield


class Branches:
    """What has to be read behind one head, so that every continuation but its last token has been."""

    def __init__(self, tails: Sequence[Tokens]) -> None:
        self.texts: list[Tokens] = []
        self.of: dict[Tokens, int] = {}
        """Which text begins like this."""
        for text in sorted({tail[:-1] for tail in tails if len(tail) > 1}, key=len, reverse=True):
            if text not in self.of:
                self.of.update(
                    {text[:end]: len(self.texts) for end in range(1, len(text) + 1) if text[:end] not in self.of}
                )
                self.texts.append(text)


class Reader:
    """Reads texts into the rows of a cache. A text read later at the same place takes that of an earlier one."""

    def __init__(self, forward: Forward, cache: SlotCache, device: torch.device) -> None:
        self.forward = forward
        self.cache = cache
        self.device = device

    def __call__(self, texts: Sequence[Tokens], starts: Sequence[int], keep_BK: list[list[int]]) -> Tensor:
        """Log-probabilities [B, K, V] of what comes behind the tokens that are kept, counted from each text's start."""
        ids_BT, _ = padded([list(text) for text in texts], self.device)
        start_B1 = torch.tensor(starts, device=self.device)[:, None]
        position_BT = start_B1 + torch.arange(ids_BT.shape[1], device=self.device)
        self.cache.aim(position_BT, max(starts) + ids_BT.shape[1])
        logits_BKV = self.forward(self.cache, ids_BT, position_BT, torch.tensor(keep_BK, device=self.device))
        return logits_BKV.float().log_softmax(-1)


class Begun:
    """What all heads begin with, read once."""

    def __init__(self, tokens: Tokens, device: torch.device) -> None:
        self.tokens = tokens
        self.device = device
        self.cache = SlotCache()

    def read(self, forward: Forward) -> Iterator[None]:
        self.cache.reserve(1, max(1, len(self.tokens)))
        reader = Reader(forward, self.cache, self.device)
        for start in range(0, len(self.tokens), SCORED_PER_PASS):
            reader([self.tokens[start : start + SCORED_PER_PASS]], [start], keep_BK=[[0]])
            yield

    def cache_for(self, num_rows: int, num_positions: int) -> SlotCache:
        """A cache whose rows all hold it."""
        cache = SlotCache()
        cache.reserve(num_rows, num_positions)
        if self.tokens:
            cache.join(self.cache, [0] * num_rows, at=0)
        return cache


def common_beginning(heads: Sequence[Tokens]) -> Tokens:
    """Of all heads, but for the last token of the shortest, which has to be read with its own; empty if too short."""
    if len(heads) < 2:
        return ()
    common = os.path.commonprefix([min(heads), max(heads)])[: min(map(len, heads)) - 1]
    return tuple(common) if len(common) >= SHORTEST_SHARED else ()


class Scorings:
    """Those in line; they take turns, pass by pass, so that a large one delays a small one by one pass only."""

    def __init__(self, forward: Forward, device: torch.device, vocab_size: int) -> None:
        self._how = forward, device, vocab_size
        self._line: deque[tuple[Scoring, Iterator[None]]] = deque()
        self._done: list[Scoring] = []

    def __len__(self) -> int:
        return len(self._line)

    def add(self, scoring: Scoring) -> None:
        self._line.append((scoring, scoring.passes(*self._how)))

    def step(self) -> None:
        """One pass of whoever is next."""
        while self._line:
            scoring, passes = self._line[0]
            more = not scoring.cancelled and next(passes, DONE) is not DONE
            self._line.popleft()
            if more:
                self._line.append((scoring, passes))
                return
            if not scoring.cancelled:
                self._done.append(scoring)

    def take_done(self) -> list[Scoring]:
        done, self._done = self._done, []
        return done

    def clear(self) -> list[Scoring]:
        """Forget all; those that were in line."""
        left = [scoring for scoring, _ in self._line]
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


def critic_text(tokenizer: Any, query: str, response: str) -> str:
    """What a critic reads: the exchange in the chat template, nothing else. Training and serving share it."""
    turns = [
        {"role": "user", "content": without_special_tokens(tokenizer, query)},
        {"role": "assistant", "content": without_special_tokens(tokenizer, response)},
    ]
    return render(tokenizer, turns, add_generation_prompt=False)


@torch.inference_mode()
def class_probabilities(
    model: Any, ids: Sequence[list[int]], temperature: float | Sequence[float] = 1.0
) -> list[list[float]]:
    """Per text a number for every label, in the order of `config.id2label`.

    Classes share a probability of 1, at a temperature for all texts or each its own; labels that begin with
    `score:` are no classes, each is a score in [0, 1] by itself.
    """
    is_score_C = torch.tensor([label.startswith(SCORE_PREFIX) for _, label in sorted(model.config.id2label.items())])
    is_score_C, temperature_B = is_score_C.to(model.device), torch.as_tensor(temperature).expand(len(ids))
    found: list[list[float]] = [[] for _ in ids]
    pad = model.config.get_text_config().pad_token_id
    for rows in by_length([len(text) for text in ids]):
        ids_BT, seen_BT = padded([ids[row] for row in rows], model.device, pad)
        logits_BC = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).logits
        classes_BC = logits_BC.float() / temperature_B[rows, None].to(model.device)
        probs_BC = classes_BC.masked_fill(is_score_C, -torch.inf).softmax(-1)
        values_BC = probs_BC.where(~is_score_C, logits_BC.float().sigmoid())
        for row, values in zip(rows, values_BC.tolist(), strict=True):
            found[row] = values
    return found


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


def padded(rows: Sequence[list[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids padded on the right, and 1 where they are real."""
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long)
    seen_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return ids_BT.to(device), seen_BT.to(device)
