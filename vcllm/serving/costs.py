"""What a request will need, guessed from its text: good enough for the door, long before anything is tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vcllm.contracts.chat import ChatMessage

BYTES_PER_TOKEN = 3
"""Of UTF-8. English has four and more, Chinese has about three, so the guess is rather too high."""


def text_tokens(texts: Iterable[str]) -> int:
    """About how many tokens the texts have together."""
    return sum(num_bytes(text) for text in texts) // BYTES_PER_TOKEN


def num_bytes(text: str) -> int:
    """In UTF-8. Half a character counts, too: it is for somebody else to refuse."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def answer_tokens(conversations: Iterable[Sequence[ChatMessage]], max_tokens: int, n: int) -> int:
    """About how many tokens n answers to each conversation may hold at once, prompts included."""
    return sum(
        n * (text_tokens(message.content for message in conversation) + max_tokens) for conversation in conversations
    )
