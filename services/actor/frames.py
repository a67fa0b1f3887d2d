"""The frames of a streamed chat, as the `openai` SDK expects them.

A role frame per answer, text, a finish frame per answer, a usage frame when asked for, `[DONE]`. A failure in
between is turned into an error frame by whoever sends the frames.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from services.actor.spans import used
from vcllm.contracts.chat import ChoiceLogprobs, ChosenLogprob, FinishReason
from vcllm.engine.protocol import Delta, Generation
from vcllm.web.arrivals import in_batches
from vcllm.web.sse import DONE, json_line, json_text
from vcllm.web.tracing import note
from vcllm.web.usage import usage_comment


@dataclass(frozen=True, slots=True)
class Head:
    """What all frames of a stream share."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class FrameWriter:
    """Writes the frames of one stream. Only what differs between frames is encoded for each."""

    def __init__(self, head: Head, n: int, include_usage: bool) -> None:
        shared = json.dumps(
            {
                "id": head.id,
                "object": "chat.completion.chunk",
                "created": head.created,
                "model": head.model,
                "system_fingerprint": head.system_fingerprint,
            },
            separators=(",", ":"),
        )
        self._open = f'data: {shared[:-1]},"choices":['.encode()
        self._close = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._choice = [self._open + b'{"index":%d,"delta":' % index for index in range(n)]
        self._text = [choice + b'{"content":' for choice in self._choice]
        self._plain = b'},"logprobs":null,"finish_reason":null}' + self._close

    def role(self, index: int) -> bytes:
        return self._choice[index] + b'{"role":"assistant","content":"","refusal":null' + self._plain

    def text(self, index: int, text: str, logprobs: list[ChosenLogprob] | None) -> bytes:
        begin = self._text[index] + json_text(text)
        if logprobs is None:
            return begin + self._plain
        told = json_line(ChoiceLogprobs(content=logprobs))
        return begin + b'},"logprobs":' + told + b',"finish_reason":null}' + self._close

    def finish(self, index: int, reason: FinishReason) -> bytes:
        end = f'{{}},"logprobs":null,"finish_reason":"{reason}"}}'
        return self._choice[index] + end.encode() + self._close

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        counts = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        return self._open + f'],"usage":{json.dumps(counts, separators=(",", ":"))}}}\n\n'.encode()


class ChatStream:
    """The frames of one generation; closing it lets go of everything the stream holds."""

    def __init__(
        self,
        head: Head,
        generation: Generation,
        n: int,
        held: AsyncExitStack,
        *,
        include_usage: bool = False,
        tell_usage: bool = False,
        logprobs: bool = False,
    ) -> None:
        """include_usage: a frame with it, for the client; tell_usage: a comment, for the gateway."""
        self.head = head
        self.generation = generation
        self.n = n
        self.include_usage = include_usage
        self.tell_usage = tell_usage
        self.logprobs = logprobs
        self._held = held
        self._write = FrameWriter(head, n, include_usage)
        self._frames = self._make()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._frames

    async def aclose(self) -> None:
        """Safe at any time, also before the first frame and after the last."""
        await self._frames.aclose()
        await self._held.aclose()

    async def _make(self) -> AsyncGenerator[bytes]:
        yield b"".join(map(self._write.role, range(self.n)))
        num_tokens = [0] * self.n
        async with aclosing(in_batches(self.generation)) as batches:
            async for deltas in batches:
                pieces = merged(deltas)
                for piece in pieces:
                    num_tokens[piece.index] = piece.num_tokens
                yield b"".join(map(self._piece, pieces))
        counts = self.generation.num_prompt_tokens, sum(num_tokens)
        note(used(*counts))
        usage = self._write.usage(*counts) if self.include_usage else b""
        yield usage + (usage_comment(*counts) if self.tell_usage else b"") + DONE

    def _piece(self, delta: Delta) -> bytes:
        text = end = b""
        if delta.text or delta.logprobs:
            text = self._write.text(delta.index, delta.text, delta.logprobs if self.logprobs else None)
        if delta.finish_reason:
            end = self._write.finish(delta.index, delta.finish_reason)
        return text + end


def merged(deltas: list[Delta]) -> Iterable[Delta]:
    """All that has come for the same answer, as one piece."""
    if len(deltas) == 1:
        return deltas
    by_answer: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_answer.setdefault(delta.index, []).append(delta)
    return [_one(each) for each in by_answer.values()]


def _one(deltas: list[Delta]) -> Delta:
    last = deltas[-1]
    return Delta(
        last.index,
        "".join(delta.text for delta in deltas),
        last.finish_reason,
        last.num_tokens,
        [each for delta in deltas for each in delta.logprobs],
    )
