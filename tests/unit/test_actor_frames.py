"""The frames of a streamed chat where the engine is ahead of its reader."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from services.actor.frames import ChatStream, Head
from vcllm.contracts.chat import ChosenLogprob
from vcllm.engine.protocol import Delta

HEAD = Head("chatcmpl-1", 1, "v1", None)


@dataclass
class Arrived:
    """A generation whose every piece is there already."""

    deltas: list[Delta]
    num_prompt_tokens: int = 3

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta in self.deltas:
            yield delta

    def cancel(self) -> None: ...


def sent(deltas: list[Delta], n: int, **options: bool) -> list[Any]:
    """The parsed frames after the role frames; `[DONE]` as it is."""

    async def read() -> bytes:
        stream = ChatStream(HEAD, Arrived(deltas), n, AsyncExitStack(), **options)
        return b"".join([frames async for frames in stream])

    lines = asyncio.run(read()).decode().split("\n\n")[n:-1]
    return [json.loads(line[6:]) if "[DONE]" not in line else "[DONE]" for line in lines]


def test_pieces_that_have_piled_up_become_one_frame_for_each_answer():
    """In the order of their text; the ends come in frames of their own, and all tokens are counted."""
    deltas = [
        Delta(0, "a", num_tokens=1),
        Delta(1, "x", num_tokens=2),
        Delta(0, "b", "stop", 3),
        Delta(1, "y", "length", 4),
    ]

    *frames, usage, done = sent(deltas, 2, include_usage=True)

    told = [(c["index"], c["delta"].get("content"), c["finish_reason"]) for f in frames for c in f["choices"]]
    assert told == [(0, "ab", None), (0, None, "stop"), (1, "xy", None), (1, None, "length")]
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    assert done == "[DONE]"


def test_the_logprobs_of_merged_pieces_are_all_there():
    """In order; a piece without text yet is told with them."""
    first, second = (ChosenLogprob(token=token, logprob=-1) for token in "ab")

    text, _, _ = sent([Delta(0, "", logprobs=[first]), Delta(0, "ab", "stop", 2, [second])], 1, logprobs=True)

    choice = text["choices"][0]
    assert choice["delta"] == {"content": "ab"}
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["a", "b"]


def test_nothing_is_said_of_logprobs_that_were_not_asked_for():
    """Whatever the engine may know."""
    text, *_ = sent([Delta(0, "a", "stop", 1, [ChosenLogprob(token="a", logprob=-1)])], 1)

    assert text["choices"][0]["logprobs"] is None
