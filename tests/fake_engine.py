"""An engine without a model: writes the same tokens every time, and says how likely they were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from vcllm.contracts.chat import ChosenLogprob, Completion, Sampling, TokenLogprob
from vcllm.contracts.problems import Overloaded
from vcllm.engine.protocol import Answers, Conversation, Delta

TOKENS = ("The", " 河", "谷", "\u2028", ' "quoted"', "\n", " end")
SILENCE_S = 0.35


def chosen(number: int, alternatives: int) -> ChosenLogprob:
    token = TOKENS[number]
    others = [TokenLogprob(token=TOKENS[i], logprob=-1.5 - i, bytes=list(TOKENS[i].encode())) for i in range(5)]
    return ChosenLogprob(
        token=token, logprob=-0.25 * (number + 1), bytes=list(token.encode()), top_logprobs=others[:alternatives]
    )


class FakeGeneration:
    """Say `break` to it and it fails midway, `silent` and it is silent for a while, `full` and it is refused."""

    num_prompt_tokens = 5
    queue_s = 0.0

    def __init__(self, said: str, sampling: Sampling, n: int) -> None:
        self.said = said
        self.sampling = sampling
        self.n = n

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for number, token in enumerate(TOKENS):
            await asyncio.sleep(SILENCE_S if self.said == "silent" and number == 1 else 0)
            if self.said == "break" and number == 3:
                raise RuntimeError("canary-secret")
            for index in range(self.n):
                logprobs = [] if self.sampling.logprobs is None else [chosen(number, self.sampling.logprobs)]
                yield Delta(index, token, None, number + 1, logprobs)
        for index in range(self.n):
            yield Delta(index, "", "stop", len(TOKENS))

    def cancel(self) -> None: ...


class FakeEngine:
    """Remembers how tokens were to be drawn."""

    alive = True

    def __init__(self) -> None:
        self.asked: list[tuple[Conversation, Sampling]] = []
        self.times: list[float] = []
        """When it was asked."""
        self.refusals = 0
        """So many requests are refused before the next is answered."""

    async def generate(self, conversation: Conversation, sampling: Sampling, n: int = 1) -> FakeGeneration:
        self._note(conversation, sampling)
        return FakeGeneration(conversation[-1].content, sampling, n)

    async def complete(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1) -> list[Answers]:
        [conversation] = conversations
        self._note(conversation, sampling)
        if conversation[-1].content == "silent":
            await asyncio.sleep(SILENCE_S)
        asked = sampling.logprobs
        logprobs = None if asked is None else [chosen(number, asked) for number in range(len(TOKENS))]
        completion = Completion(text="".join(TOKENS), finish_reason="stop", num_tokens=len(TOKENS), logprobs=logprobs)
        return [Answers(FakeGeneration.num_prompt_tokens, [completion] * n)]

    async def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        raise AssertionError("nothing is scored here")

    def close(self) -> None: ...

    def _note(self, conversation: Conversation, sampling: Sampling) -> None:
        self.asked.append((conversation, sampling))
        self.times.append(time.monotonic())
        if self.refusals:
            self.refusals -= 1
            raise Overloaded("Full.", retry_after_s=0.2)
