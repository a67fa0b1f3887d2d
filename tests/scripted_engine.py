"""An engine that writes nothing and whose scores are scripted: what a judge makes of them can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vcllm.contracts.problems import BadRequest
from vcllm.engine.protocol import Conversation

Script = Callable[[str, str], float]
"""Probability of a continuation after a conversation, whose messages are one text."""


class ScriptedEngine:
    """Implements `score` of the `Engine` protocol, with a longest text and a failure to raise."""

    def __init__(self, script: Script, *, longest: int = 1 << 30, failure: Exception | None = None) -> None:
        self.script = script
        self.longest = longest
        self.failure = failure
        self.calls: list[list[str]] = []
        """The texts of every call."""
        self.closed = False

    async def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        texts = ["\n".join(message.content for message in conversation) for conversation in conversations]
        self.calls.append(texts)
        if self.failure is not None:
            raise self.failure
        if max(map(len, texts)) > self.longest:
            raise BadRequest("Too long.", code="context_length_exceeded")
        return [[log(self.script(text, each)) for each in own] for text, own in zip(texts, continuations, strict=True)]

    async def generate(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a critic reads and never writes")

    async def complete(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a critic reads and never writes")

    def close(self) -> None:
        self.closed = True


def log(probability: float) -> float:
    return math.log(probability) if probability else -math.inf
