"""What is being written: requests with their prompt and n sequences, waiting in line or live as rows."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from vcllm.contracts.chat import FinishReason
from vcllm.engine.sampling import Draw, TokenReport, reports, row_key, sample, uniforms

# Shapes: B live rows, V vocabulary.


@dataclass(eq=False, slots=True)
class Sequence:
    """One answer in the making."""

    request: Request
    index: int
    key: int
    """Of its random numbers; see `sampling.row_key`."""
    tokens: list[int] = field(default_factory=list)
    """Without the token that ended it."""
    reports: list[TokenReport] = field(default_factory=list)
    """One per token, where the request wants them."""
    finish: FinishReason | None = None
    cancelled: bool = False
    """Set by anyone, at any time; the row is gone before the next step."""

    def accept(self, token: int, report: TokenReport | None, stop_ids: frozenset[int]) -> None:
        """Take the next token; decide whether that was the last."""
        if token in stop_ids:
            self.finish = "stop"
            return
        self.tokens.append(token)
        if report is not None:
            self.reports.append(report)
        if len(self.tokens) >= self.request.max_tokens:
            self.finish = "length"


@dataclass(eq=False, slots=True)
class Request:
    """One prompt and the sequences that continue it; they are admitted together and share its prefill."""

    prompt: list[int]
    max_tokens: int
    draw: Draw = field(default_factory=Draw)
    sequences: list[Sequence] = field(default_factory=list)
    urgent: bool = False
    """Somebody waits for this very answer, perhaps watching it grow: it is admitted before bulk work."""
    owner: Any = None
    """Whoever wants the tokens; the engine only hands it back."""
    begun: float | None = None
    """When it left the line, by `time.monotonic`; None: it still stands there."""

    @property
    def length(self) -> int:
        """Positions each of its rows may come to need."""
        return len(self.prompt) + self.max_tokens

    @property
    def live(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.cancelled]


def new_request(
    prompt: list[int],
    max_tokens: int,
    *,
    seed: int = 0,
    n: int = 1,
    urgent: bool = False,
    owner: Any = None,
    **draw: Any,
) -> Request:
    """A request with its n sequences, each with its own random numbers. draw: fields of `Draw`."""
    assert prompt, "there is nothing to continue"
    request = Request(prompt, max_tokens, Draw(**draw), urgent=urgent, owner=owner)
    request.sequences = [Sequence(request, index, row_key(seed, index)) for index in range(n)]
    return request


class Waiting:
    """Requests in order of arrival, urgent ones first."""

    def __init__(self) -> None:
        self._urgent: deque[Request] = deque()
        self._bulk: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._bulk)

    def add(self, request: Request) -> None:
        (self._urgent if request.urgent else self._bulk).append(request)

    def first(self) -> Request | None:
        """The next that anybody still wants; the others are forgotten here."""
        for queue in (self._urgent, self._bulk):
            while queue and not queue[0].live:
                queue.popleft()
        return next((queue[0] for queue in (self._urgent, self._bulk) if queue), None)

    def pop(self) -> Request:
        """Take out what `first` just showed."""
        request = (self._urgent or self._bulk).popleft()
        request.begun = time.monotonic()
        return request

    def clear(self) -> list[Request]:
        requests = [*self._urgent, *self._bulk]
        self._urgent.clear()
        self._bulk.clear()
        return requests


class Rows:
    """The live sequences and, by column, what a step must know of them; row r is row r of the cache."""

    COLUMNS = ("token", "position", "step", "key")

    def __init__(self, sequences: list[Sequence] | None = None) -> None:
        """Rows that have yet to draw their first token."""
        self.sequences = list(sequences or ())
        requests = [sequence.request for sequence in self.sequences]
        self.token = np.zeros(len(requests), dtype=np.int64)
        """The last one drawn, not yet in the cache."""
        self.position = np.array([len(request.prompt) for request in requests], dtype=np.int64)
        """Where that token belongs: the row's length in the cache."""
        self.step = np.zeros(len(requests), dtype=np.int64)
        """Tokens drawn so far."""
        self.key = np.array([sequence.key for sequence in self.sequences], dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def watched(self) -> bool:
        return any(sequence.request.urgent for sequence in self.sequences)

    @property
    def longest(self) -> int:
        """Positions the longest row may come to need."""
        return max((sequence.request.length for sequence in self.sequences), default=0)

    def draw(self, logits_BV: Tensor, stop_ids: frozenset[int]) -> None:
        """One more token for every row."""
        draws = [sequence.request.draw for sequence in self.sequences]
        self.token = sample(logits_BV, draws, uniforms(self.key, self.step))
        told = reports(logits_BV, draws, self.token)
        self.step += 1
        for sequence, token, report in zip(self.sequences, self.token.tolist(), told, strict=True):
            sequence.accept(token, report, stop_ids)

    def extend(self, others: Rows) -> None:
        """Append these rows behind the others."""
        self.sequences.extend(others.sequences)
        for name in self.COLUMNS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(others, name)]))

    def leave(self) -> tuple[list[int], list[int]]:
        """Drop what is finished or cancelled; the last rows move into the gaps. Returns (from, to) rows."""
        gone = {r for r, sequence in enumerate(self.sequences) if sequence.finish or sequence.cancelled}
        kept = len(self.sequences) - len(gone)
        targets = sorted(r for r in gone if r < kept)
        sources = [r for r in range(kept, len(self.sequences)) if r not in gone]
        if gone:
            for source, target in zip(sources, targets, strict=True):
                self.sequences[target] = self.sequences[source]
            del self.sequences[kept:]
            for name in self.COLUMNS:
                column = getattr(self, name)
                column[targets] = column[sources]
                setattr(self, name, column[:kept])
        return sources, targets
