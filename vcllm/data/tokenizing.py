"""Whether a row is too long by a tokenizer's own count. Apart from `lengths`, which needs no such library."""

from __future__ import annotations

from pathlib import Path

from vcllm.contracts.problems import BadRequest
from vcllm.data.lengths import IsLong


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
