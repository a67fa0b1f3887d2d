"""From tokens to text, piece by piece: never half a character, never past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""

WINDOW = 16
"""Tokens decoded again with each new one; bounded, so that long answers stay cheap."""
LONGEST_CHARACTER = 4
"""Tokens; some tokenizers write unknown characters byte by byte."""


class TextStream:
    """The text of one answer as its tokens come in; however they are cut up, the pieces add up alike."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.stopped = False
        """A stop string was met; the rest of the answer is not wanted."""
        self.num_settled = 0
        """Characters the tokens have become, whether handed on or held back."""
        self._tokens: list[int] = []
        self._start = 0
        self._told = 0
        """Characters of `_tokens[_start:]` that have been handed on."""
        self._held = ""
        """May turn out to be the beginning of a stop string."""

    def push(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The text that is certain now. `last`: nothing follows, so what was held back is due.

        A character that is still unfinished at the end is dropped.
        """
        if self.stopped:
            return ""
        self._tokens.extend(tokens)
        return self._until_stop(self._decode(), last)

    def _decode(self) -> str:
        text = self._text(self._start)
        # What ends the text can still become something else: an unfinished character is one, or one for each byte.
        settled = text.rstrip(REPLACEMENT)
        new = settled[self._told :]
        self._told = max(self._told, len(settled))
        self.num_settled += len(new)
        if settled == text and len(self._tokens) - self._start > WINDOW:
            self._slide()
        return new

    def _slide(self) -> None:
        """Start the window at the last whole character: it stays as context, as some decoders trim a text's start."""
        last = len(self._tokens) - 1
        beginnings = range(last, max(self._start, last - LONGEST_CHARACTER), -1)
        self._start = next((start for start in beginnings if REPLACEMENT not in self._text(start)), last)
        self._told = len(self._text(self._start))

    def _text(self, start: int) -> str:
        return str(self.tokenizer.decode(self._tokens[start:], skip_special_tokens=True))

    def _until_stop(self, new: str, last: bool) -> str:
        if not self.stops:
            return new
        text = self._held + new
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
