"""What is told about an answer's tokens: each with its text, as the OpenAI API shows them."""

from __future__ import annotations

from collections import deque
from typing import Any

from vcllm.contracts.chat import ChosenLogprob, TokenLogprob
from vcllm.engine.sampling import TokenReport
from vcllm.engine.text import REPLACEMENT


class Logprobs:
    """Of one answer. Tokens come in before their text is certain and go out when its beginning does."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._waiting: deque[tuple[int, ChosenLogprob]] = deque()
        """Each with the place in the answer where its text begins."""

    def push(self, token: int, report: TokenReport, start: int) -> None:
        """start: characters before the token's text."""
        logprob, likeliest = report
        alternatives = [self._entry(*each) for each in likeliest]
        entry = ChosenLogprob(**dict(self._entry(token, logprob)), top_logprobs=alternatives)
        self._waiting.append((start, entry))

    def take(self, num_told: int | None) -> list[ChosenLogprob]:
        """Those whose text begins within the first `num_told` characters of the answer; None: all."""
        told = []
        while self._waiting and (num_told is None or self._waiting[0][0] < num_told):
            told.append(self._waiting.popleft()[1])
        return told

    def _entry(self, token: int, logprob: float) -> TokenLogprob:
        text = str(self.tokenizer.decode([token]))
        whole = REPLACEMENT not in text
        return TokenLogprob(token=text, logprob=logprob, bytes=list(text.encode()) if whole else None)
