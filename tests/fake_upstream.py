"""A hand-written OpenAI-compatible server for the remote engine: it answers as a test tells it, and remembers all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], Response]


class FakeUpstream:
    """Serves one base model and any adapters that it is told to load."""

    def __init__(self) -> None:
        self.forget()
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._list),
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
                Route("/metrics", self._metrics),
                Route("/{path:path}", self._scripted, methods=["POST"]),
            ]
        )

    def forget(self) -> None:
        """As it was at first."""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Path and body of every call with a body, in order."""
        self.headers: list[dict[str, str]] = []
        self.scripts: dict[str, list[Answer]] = {}
        """By path: what is answered next; the last one stays."""
        self.models: dict[str, str] = {"actor/base": "/models/actor/base"}
        """Name to the folder it came from."""
        self.num_open = 0
        """Answers that somebody waits for."""
        self.num_most = 0

    def script(self, path: str, *answers: Answer | Response) -> None:
        """What calls of this path get, one after the other; the last for all that follow."""
        self.scripts[path] = [
            answer if callable(answer) and not isinstance(answer, Response) else always(answer) for answer in answers
        ]  # type: ignore[arg-type]

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [body for called, body in self.requests if called == path]

    async def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(await request.body())
        self.requests.append((request.url.path, body))
        self.headers.append(dict(request.headers))
        return body

    async def _scripted(self, request: Request) -> Response:
        body, answers = await self._body(request), self.scripts[request.url.path]
        self.num_open += 1
        self.num_most = max(self.num_most, self.num_open)
        try:
            await asyncio.sleep(0)
            return (answers.pop(0) if len(answers) > 1 else answers[0])(body)
        finally:
            self.num_open -= 1

    async def _list(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": name, "root": root} for name, root in self.models.items()]})

    async def _load(self, request: Request) -> Response:
        body = await self._body(request)
        if body["lora_name"] in self.models:
            return refused(400, "has already been loaded")
        self.models[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse("Success")

    async def _unload(self, request: Request) -> Response:
        if self.models.pop((await self._body(request))["lora_name"], None) is None:
            return refused(404, "cannot be found")
        return PlainTextResponse("Success")

    async def _metrics(self, _: Request) -> Response:
        return self.scripts["/metrics"][0]({})


def always(response: Response) -> Answer:
    return lambda _: response


def refused(status: int, message: str, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    return JSONResponse({"error": {"message": message, **fields}}, status, headers)


def whole(*texts: str, finish: str = "stop", prompt_tokens: int = 5, completion_tokens: int | None = None) -> Response:
    """A reply that comes in one piece."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for index, text in enumerate(texts)
    ]
    written = sum(len(text.split()) for text in texts) if completion_tokens is None else completion_tokens
    return JSONResponse({"choices": choices, "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": written}})


def chunk(text: str | None = None, *, index: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    """A frame of a stream."""
    choice = {"index": index, "delta": {} if text is None else {"content": text}, "finish_reason": finish, **fields}
    return event({"choices": [choice]})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}})


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


DONE = event(b"[DONE]")


def streamed(*pieces: bytes | float, on_end: Callable[[], None] = lambda: None) -> Answer:
    """Pieces of a stream as they are; a number is a pause in seconds. `on_end` is called however it ends."""

    async def body() -> AsyncIterator[bytes]:
        try:
            for piece in pieces:
                if isinstance(piece, bytes):
                    yield piece
                else:
                    await asyncio.sleep(piece)
        finally:
            on_end()

    return lambda _: StreamingResponse(body(), media_type="text/event-stream")
