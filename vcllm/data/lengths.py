"""Ways to tell that a row is too long: by characters, or by an estimate of tokens. A tokenizer's count: `tokenizing`.

A row that is too long is cut at its end by the training; here it is only counted. Each function returns a predicate
over the row's texts together. Turns' own marks (of the chat template) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable

IsLong = Callable[[str], bool]


def characters(limit: int) -> IsLong:
    return lambda text: len(text) > limit


def estimate(text: str) -> float:
    """Four letters to a token, one token to any other character: right for zh and en within a third or so."""
    letters = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return letters / 4 + (len(text) - letters)


def estimated_tokens(limit: int) -> IsLong:
    return lambda text: len(text) > limit and estimate(text) > limit
