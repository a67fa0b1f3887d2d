"""Ways to tell that a row is too long: by characters, by an estimate of tokens, or by a tokenizer's own count.

A row that is too long is cut at its end by the training; here it is only counted. Each function returns a predicate
over the row's texts together. Turns' own marks (of the chat template) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vcllm.contracts.problems import BadRequest

IsLong = Callable[[str], bool]


def characters(limit: int) -> IsLong:
    return lambda text: len(text) > limit


def estimated_tokens(limit: int) -> IsLong:
    """Four letters to a token, one token to any other character: right for zh and en within a third or so."""

    def is_long(text: str) -> bool:
        if len(text) <= limit:
            return False
        letters = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
        return letters / 4 + (len(text) - letters) > limit

    return is_long


def tokens(folder: Path, limit: int) -> IsLong:
    """By the `tokenizer.json` in a model's folder."""
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise BadRequest("Counting tokens needs the tokenizers library: pip install 'vc-llm[data]'.") from None
    if not file.is_file():
        raise BadRequest(f"There is no tokenizer.json in {folder}. Name a model's folder that has one.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise BadRequest(f"{file} is not a tokenizer ({str(error).splitlines()[0][:80]}). Name another.") from None
    tokenizer.no_truncation()
    return lambda text: len(text) > limit and len(tokenizer.encode(text, add_special_tokens=False).ids) > limit
