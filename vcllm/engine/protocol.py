"""What a server may ask of an engine, whatever is behind it.

The local engine (`stream.py`) is one implementation; a client of any OpenAI-compatible server can be another,
so nothing here speaks of tokens, tensors or weights.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vcllm.contracts.chat import ChatMessage, ChosenLogprob, Completion, FinishReason, Sampling

Conversation = Sequence[ChatMessage]


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one answer."""

    index: int
    """Which of the n answers."""
    text: str
    """Whole characters only; may be empty in the last piece."""
    finish_reason: FinishReason | None = None
    """Set on the last piece of an answer."""
    num_tokens: int = 0
    """Tokens of this answer so far."""
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    """Of the tokens behind `text`, where the request wants them."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The n answers to one conversation."""

    num_prompt_tokens: int
    completions: list[Completion]
    queue_s: float = 0.0
    """Seconds the request stood in line before work on it began."""


class Generation(Protocol):
    """Answers on their way: the pieces of all n answers as they come, interleaved."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def queue_s(self) -> float:
        """Seconds it stood in line before work on it began; 0: it still does, or the engine cannot tell."""
        ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def cancel(self) -> None:
        """Stop working on it; safe to call at any time, also after the end."""


class Engine(Protocol):
    """Something that answers conversations."""

    async def generate(self, conversation: Conversation, sampling: Sampling, n: int = 1) -> Generation:
        """Begin n answers, which the caller must `cancel` in the end; BadRequest when they cannot fit."""
        ...

    async def complete(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1) -> list[Answers]:
        """Whole answers to many conversations, in order; number i is seeded with `sampling.seed + i`."""
        ...

    async def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Summed log-probability of each conversation's continuations, as the assistant's next words.

        Natural log, temperature 1; nothing is written. BadRequest when one of them does not fit.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Of each text the mean over its tokens of the model's last hidden states, of unit length.

        BadRequest for a text without tokens, and where the engine cannot look into the model.
        """
        ...

    def close(self) -> None:
        """Stop and let go of the weights; whatever still runs fails."""
