"""What is told about an answer's tokens: each with its text, as the OpenAI API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vcllm.contracts.chat import ChosenLogprob, TokenLogprob
from vcllm.engine.sampling import TokenReport
from vcllm.engine.text import REPLACEMENT


class Logprobs:
    """Of one answer. Tokens come in before their text is certain and go out with it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._waiting: list[ChosenLogprob] = []

    def push(self, tokens: Sequence[int], reports: Sequence[TokenReport]) -> None:
        """reports: none, where the request asks for nothing."""
        for token, (logprob, likeliest) in zip(tokens, reports, strict=bool(reports)):
            alternatives = [self._entry(*each) for each in likeliest]
            self._waiting.append(ChosenLogprob(**dict(self._entry(token, logprob)), top_logprobs=alternatives))

    def take(self, piece: str, *, last: bool) -> list[ChosenLogprob]:
        """Those behind this piece of text; with the last piece, tokens that a stop string has cut off are left out."""
        if not self._waiting or not (piece or last):
            return []
        room, taken = len(piece), 0
        for entry in self._waiting:
            if room <= 0:
                break
            room -= len(entry.token) if entry.bytes is not None else 0
            taken += 1
        told, self._waiting = self._waiting[:taken], [] if last else self._waiting[taken:]
        return told

    def _entry(self, token: int, logprob: float) -> TokenLogprob:
        text = str(self.tokenizer.decode([token]))
        whole = REPLACEMENT not in text
        return TokenLogprob(token=text, logprob=logprob, bytes=list(text.encode()) if whole else None)
