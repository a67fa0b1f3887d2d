"""What a chat costs its key: guessed when it is let in, then what the Actor says, or what was passed on of it."""

from __future__ import annotations

from types import TracebackType

from starlette.requests import ClientDisconnect

from gateway.quotas.limits import Limits
from vcllm.contracts.chat import ChatRequest
from vcllm.contracts.keys import KeyRecord

BYTES_PER_TOKEN = 4
"""Of a request, to guess how many tokens its prompt has."""
ANSWER_TOKENS = 256
"""Guessed where the request sets no limit."""


class Bill:
    """What a chat costs its key: an estimate while it runs, then what the Actor says; nothing when it never began."""

    def __init__(self, quota: Limits, key: KeyRecord, wanted: ChatRequest, num_bytes: int) -> None:
        """num_bytes: of the request. Refuses as `Limits.admit` does."""
        self._prompt = num_bytes // BYTES_PER_TOKEN
        answer = wanted.max_completion_tokens or wanted.max_tokens or ANSWER_TOKENS
        self._grant = quota.admit(key, self._prompt + answer * wanted.n)
        self._streamed = wanted.stream
        self._left = False
        self.begun = False
        self.num_frames = 0
        """Of a stream, passed on so far; each holds at least one token."""

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self._grant.headers}

    def settle(self, tokens: int | None) -> None:
        """tokens: as the Actor counted them; None: it did not say, and the estimate stands."""
        if tokens is not None:
            self._grant.settle(tokens)

    def __enter__(self) -> Bill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = isinstance(error, ClientDisconnect)
        self.close()

    def close(self) -> None:
        """What was left or broke off costs its prompt and what was passed on of it; what was refused costs nothing."""
        if self._streamed and self.begun:
            self._grant.settle(self._prompt + self.num_frames)
        elif not self.begun:
            self._grant.settle(self._prompt if self._left else 0)
        self._grant.release()
