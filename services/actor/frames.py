"""The frames of a streamed chat, as the `openai` SDK expects them.

A role frame and a finish frame per answer, text between them, a usage frame when asked for, `[DONE]` at the
end. A failure in between is turned into an error frame by whoever sends the frames.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from vcllm.engine.protocol import Delta, Generation
from vcllm.web.sse import DONE, frame


@dataclass(frozen=True, slots=True)
class Head:
    """What all frames of a stream share."""

    id: str
    created: int
    version: str


class ChatStream:
    """The frames of one generation; closing it lets go of everything the stream holds."""

    def __init__(self, head: Head, generation: Generation, n: int, include_usage: bool, held: AsyncExitStack) -> None:
        self.head = head
        self.generation = generation
        self.n = n
        self.include_usage = include_usage
        self._held = held
        self._frames = self._make()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._frames)

    async def aclose(self) -> None:
        """Safe at any time, also before the first frame and after the last."""
        await self._frames.aclose()
        await self._held.aclose()

    async def _make(self) -> AsyncGenerator[bytes]:
        for index in range(self.n):
            yield self._choice(index, {"role": "assistant", "content": ""})
        num_tokens = [0] * self.n
        async for delta in self.generation:
            num_tokens[delta.index] = delta.num_tokens
            yield self._piece(delta)
        if self.include_usage:
            yield self._usage(sum(num_tokens))
        yield DONE

    def _piece(self, delta: Delta) -> bytes:
        text = self._choice(delta.index, {"content": delta.text}) if delta.text else b""
        end = self._choice(delta.index, {}, delta.finish_reason) if delta.finish_reason else b""
        return text + end

    def _choice(self, index: int, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        return self._frame([{"index": index, "delta": delta, "finish_reason": finish_reason}])

    def _usage(self, completion_tokens: int) -> bytes:
        prompt_tokens = self.generation.num_prompt_tokens
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        return self._frame([], usage)

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        chunk = {
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.version,
            "choices": choices,
        }
        return frame({**chunk, "usage": usage} if self.include_usage else chunk)
