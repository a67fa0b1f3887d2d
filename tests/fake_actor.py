"""An Actor without a model: it answers as the last message tells it to, and remembers what it saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, Request, Response
from pydantic import SecretStr

from vcllm.contracts.chat import ChatReply, ChatRequest, Choice, ReplyMessage, Usage
from vcllm.contracts.problems import BadRequest, Overloaded
from vcllm.web.app import create_service
from vcllm.web.auth import services_only
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.health import add_health
from vcllm.web.sse import DONE, frame, stream_response
from vcllm.web.usage import USAGE_HEADER, usage_comment

QUEUE_MS = "7.5"
"""What it says of every whole answer."""
PAUSES_S = {"slow": 60, "pause": 2}
"""Before it answers what is said so."""
WORDS = ("你好", ", ", "world", "!")


class FakeActor:
    """Say `slow`, `pause`, `full`, `refuse`, `bug`, `break` or `page` to it; anything else is answered in `WORDS`."""

    def __init__(self, token: str = "internal", version: str = "actor-2") -> None:
        self.version = version
        self.forget()
        self.app = create_service("actor", lifespan=None)
        add_health(self.app, ready=lambda: self.fault)
        guard = [Depends(services_only(SecretStr(token), "actor"))]
        self.app.post("/v1/chat/completions", dependencies=guard)(self.chat)

    def forget(self) -> None:
        self.fault: str | None = None
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        """(body, headers) of each request that got in."""
        self.begun = 0
        self.cancelled = 0

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        self.seen.append((await request.json(), dict(request.headers)))
        headers = {"x-vc-version": self.version}
        match body.messages[-1].content:
            case "full":
                raise Overloaded("Full.", retry_after_s=3)
            case "refuse":
                raise BadRequest("Too long.", param="messages", code="context_length_exceeded")
            case "bug":
                raise RuntimeError("canary-secret")
            case "page":
                return Response("<html>", 500)
        if body.stream:
            tell_usage = USAGE_HEADER in request.headers
            return stream_response(self.frames(body, tell_usage), headers)
        reply = await cancel_on_disconnect(request, self.answer(body))
        queued = {"x-vc-queue-ms": QUEUE_MS}
        return Response(reply.model_dump_json(), media_type="application/json", headers=headers | queued)

    async def answer(self, body: ChatRequest) -> ChatReply:
        await self.work(body)
        choice = Choice(index=0, message=ReplyMessage(content="".join(WORDS)), finish_reason="stop")
        usage = Usage(prompt_tokens=1, completion_tokens=4, total_tokens=5)
        return ChatReply(id="chat-1", created=int(time.time()), model=self.version, choices=[choice], usage=usage)

    async def frames(self, body: ChatRequest, tell_usage: bool) -> AsyncIterator[bytes]:
        yield self.frame({"role": "assistant", "content": ""})
        await self.work(body)
        for word in WORDS:
            if word == "world" and body.messages[-1].content == "break":
                raise RuntimeError("canary-secret")
            yield self.frame({"content": word})
        yield self.frame({}, "stop")
        yield (usage_comment(1, 4) if tell_usage else b"") + DONE

    def frame(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": self.version}
        return frame({**head, "choices": [choice]})

    async def work(self, body: ChatRequest) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(PAUSES_S.get(body.messages[-1].content, 0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
