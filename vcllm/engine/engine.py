"""Continuous batching: requests join and leave between steps; every step gives each live row one more token.

Synchronous and single-threaded; whoever calls `step` in a loop decides about threads. Knows token ids only.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.manifests import PROBE_TOKENS
from vcllm.engine.cache import SlotCache, roomy
from vcllm.engine.choice import forward_of
from vcllm.engine.forward import Forward
from vcllm.engine.prefill import Limits, Prefill, admit
from vcllm.engine.prefix import PrefixCache
from vcllm.engine.prompts import encode, prompt_text, stop_ids
from vcllm.engine.scoring import Reading, Scorings
from vcllm.engine.sequence import Request, Rows, Sequence, Waiting, new_request
from vcllm.engine.text import TextStream

# Shapes: B live rows, P prompts in a prefill, T new positions, V vocabulary.


class Batch:
    """Waiting requests, the prefill under way, and the live rows of one model."""

    def __init__(
        self, model: Any, stops: frozenset[int], limits: Limits | None = None, *, forward: Forward | None = None
    ) -> None:
        """forward: None: the fastest way through the model that leaves it as it is."""
        self.forward = forward or forward_of(model)
        self.device = model.device
        self.stops = stops
        self.limits = limits or Limits()
        self.waiting = Waiting()
        self.prefill: Prefill | None = None
        self.rows = Rows()
        self.cache = SlotCache()
        self.prefixes = PrefixCache(self.limits.prefix_tokens)
        vocab_size = model.config.get_text_config().vocab_size
        self.scorings = Scorings(self.forward, self.device, vocab_size, self.prefixes)
        self.num_tokens = 0
        """Written since the start, over all requests."""

    def add(self, work: Request | Reading) -> None:
        """Put a request, which must fit the limits, or something to be read in line."""
        if not isinstance(work, Request):
            self.scorings.add(work)
            return
        assert self.limits.fit(work), "a request that can never be admitted would block all others"
        self.waiting.add(work)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefill or self.rows or self.scorings)

    def take_scored(self) -> list[Reading]:
        """What has been read to its end, each told once."""
        return self.scorings.take_done()

    def clear(self) -> list[Request | Reading]:
        """Forget everything; the work that was in it."""
        running = {id(sequence.request): sequence.request for sequence in self.rows.sequences}
        prefilling = self.prefill.requests if self.prefill else []
        self.prefill, self.rows, self.cache = None, Rows(), SlotCache()
        return [*running.values(), *prefilling, *self.waiting.clear(), *self.scorings.clear()]

    def rest(self) -> None:
        """Give the memory of the cache back; for a batch that has been idle for a while."""
        assert self.idle, "rows in use need their cache"
        self.cache.release()

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """One more token for every live row, a piece of the waiting prompts, a pass of scoring; what changed."""
        self._drop()
        changed = self._decode() if self.rows else []
        if self.prefill is None or not self.prefill.wanted:
            self.prefill = admit(self.waiting, self.rows, self.limits, self.prefixes)
        if self.prefill is not None:
            changed += self._read(self.prefill)
        self.scorings.step()
        self.num_tokens += len(changed)
        return changed

    def _drop(self) -> None:
        """Rows that are finished or cancelled leave."""
        length = int(self.rows.position.max(initial=0))
        sources, targets = self.rows.leave()
        if sources:
            self.cache.move(sources, targets, length)

    def _read(self, prefill: Prefill) -> list[Sequence]:
        """One piece of the prompts; after the last one their rows go live with a first token."""
        width = max(1, self.limits.piece(self.rows.watched) // len(prefill.requests))
        start, end = prefill.done, min(prefill.length, prefill.done + width)
        whole = (start, end) == (0, prefill.length)
        assert whole or len(prefill.requests) == 1, "only a prompt that is read alone is read in pieces"
        logits_PV = self._forward(
            prefill.cache,
            ids_BT=prefill.ids_PT(start, end),
            position_BT=prefill.position_PT(start, end),
            keep_B=np.clip(prefill.last_P, start, end - 1) - start,
        )
        prefill.done = end
        if end < prefill.length:
            return []
        self.prefill = None
        prefill.remember(self.prefixes)
        return self._go_live(prefill, logits_PV)

    def _go_live(self, prefill: Prefill, logits_PV: Tensor) -> list[Sequence]:
        """Every sequence draws its first token from its prompt's logits and becomes a row."""
        drawn = [(row, sequence) for row, request in enumerate(prefill.requests) for sequence in request.live]
        if not drawn:
            return []
        source, sequences = [row for row, _ in drawn], [sequence for _, sequence in drawn]
        fresh = Rows(sequences)
        fresh.draw(logits_PV[source], self.stops)
        self.cache.reserve(*self._room(len(self.rows) + len(fresh), prefill.num_positions + 1))
        self.cache.join(prefill.cache, source, at=len(self.rows))
        self.rows.extend(fresh)
        self._drop()
        return sequences

    def _decode(self) -> list[Sequence]:
        """One token for every live row."""
        rows = self.rows
        self.cache.reserve(*self._room(len(rows), 0))
        first_B = np.zeros(len(rows), dtype=np.int64)
        logits_BV = self._forward(self.cache, rows.token[:, None], rows.position[:, None], keep_B=first_B)
        rows.position += 1
        rows.draw(logits_BV, self.stops)
        changed = list(rows.sequences)
        self._drop()
        return changed

    def _room(self, num_rows: int, num_positions: int) -> tuple[int, int]:
        """For the next step; `num_positions` where the coming rows need more than the live ones."""
        return roomy(num_rows, max(num_positions, int(self.rows.position.max(initial=0)) + 1))

    def _forward(self, cache: SlotCache, ids_BT: np.ndarray, position_BT: np.ndarray, keep_B: np.ndarray) -> Tensor:
        """Logits at one position of every row, [B, V]."""
        position = torch.from_numpy(position_BT.copy()).to(self.device)
        cache.aim(position, int(position_BT.max()) + 1, _span(position_BT))
        ids, keep_B1 = (torch.from_numpy(each).to(self.device) for each in (ids_BT, keep_B[:, None]))
        return self.forward(cache, ids, position, keep_B1)[:, 0]


def _span(position_BT: np.ndarray) -> slice | None:
    """The positions that all rows share; each row's follow one another."""
    start = int(position_BT[0, 0])
    alike = bool((position_BT[:, 0] == start).all())
    return slice(start, start + position_BT.shape[1]) if alike else None


def greedy_texts(model: Any, tokenizer: Any, prompts: Many[str], max_tokens: int = PROBE_TOKENS) -> list[str]:
    """The most likely answer to each prompt, one user message each: how a version is recognised.

    The trainer records these in the manifest and every server repeats them after loading, both through here.
    """
    training = model.training
    batch = Batch(model.eval(), stop_ids(model, tokenizer))
    texts = [prompt_text(tokenizer, [ChatMessage(role="user", content=prompt)]) for prompt in prompts]
    requests = [new_request(ids, max_tokens, temperature=0.0) for ids in encode(tokenizer, texts)]
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()
    model.train(training)
    return [TextStream(tokenizer).push(request.sequences[0].tokens, last=True) for request in requests]
