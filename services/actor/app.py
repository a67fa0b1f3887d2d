"""The Actor's routes: chat, streamed or whole, many conversations at once, and the list of versions."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from pydantic import ValidationError
from redis.exceptions import RedisError

from services.actor.frames import ChatStream, Head
from services.actor.settings import ActorSettings
from vcllm.contracts.chat import (
    ALIGNED_MODEL,
    ChatBatchReply,
    ChatBatchRequest,
    ChatMessage,
    ChatReply,
    ChatRequest,
    Choice,
    ModelCard,
    ModelList,
    Sampling,
    Usage,
)
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest
from vcllm.engine.protocol import Answers, Engine
from vcllm.serving.pool import resolve
from vcllm.serving.service import VERSION_HEADER, Serving, guard, serve_role
from vcllm.serving.writing import build_writer
from vcllm.settings import Settings
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.sse import stream_response


def actor_serving(request: Request) -> Serving[Engine]:
    serving: Serving[Engine] = request.state.serving
    return serving


ServingDep = Annotated[Serving[Engine], Depends(actor_serving)]


def create_app(server: ActorSettings | None = None, shared: Settings | None = None) -> FastAPI:
    """The Actor as an app; without arguments it is configured by the environment."""
    server, shared = server or ActorSettings(), shared or Settings()
    serving, collectors = build_writer("actor", server, shared)
    app = serve_role(serving, shared, *collectors)
    internal = [guard(shared)]
    app.post("/v1/chat/completions", dependencies=internal, response_model=None)(chat)
    app.post("/v1/chat/completions/batch", dependencies=internal)(chat_batch)
    app.get("/v1/models", dependencies=internal)(list_models)
    return app


async def chat(body: ChatRequest, request: Request, response: Response, serving: ServingDep) -> Any:
    """Answer one conversation, n times, with `vc-llm` or any version of the store."""
    if body.stream:
        stream = await cancel_on_disconnect(request, open_stream(body, serving))
        return stream_response(stream, {VERSION_HEADER: stream.head.version})
    reply = await cancel_on_disconnect(request, answer(body, serving))
    response.headers[VERSION_HEADER] = reply.model
    return reply


async def chat_batch(
    body: ChatBatchRequest, request: Request, response: Response, serving: ServingDep
) -> ChatBatchReply:
    """Answer many conversations together; the reply comes when the last answer is there."""
    reply = await cancel_on_disconnect(request, answer_batch(body, serving))
    response.headers[VERSION_HEADER] = reply.model
    return reply


def list_models(serving: ServingDep) -> ModelList:
    """The promoted version under its fixed name, then every version in the store."""
    try:
        aliases = serving.aliases.all("actor")
    except RedisError:
        aliases = {}
    if serving.pool.current is not None:
        aliases["current"] = serving.pool.current
    fixed = [ModelCard(id=ALIGNED_MODEL, parent=serving.pool.current)] if serving.pool.current else []
    return ModelList(data=[*fixed, *(card(each, aliases, serving) for each in serving.store.manifests("actor"))])


def card(manifest: Manifest, aliases: dict[str, str], serving: Serving[Engine]) -> ModelCard:
    """One version, with the aliases that point at it."""
    return ModelCard(
        id=manifest.name,
        created=int(manifest.created),
        parent=manifest.parent,
        alias=sorted(alias for alias, version in aliases.items() if version == manifest.name),
        checksum=serving.store.checksum("actor", manifest.name),
    )


async def answer(body: ChatRequest, serving: Serving[Engine]) -> ChatReply:
    """A whole reply."""
    sampling, version = sampling_of(body), resolve(body.model, ALIGNED_MODEL)
    async with serving.door.enter(body.n), serving.pool.use(version) as held:
        [answers] = await held.model.complete([body.messages], sampling, body.n)
    return ChatReply(
        id=new_id(),
        created=int(time.time()),
        model=held.version,
        choices=[
            Choice(index=i, message=ChatMessage(role="assistant", content=c.text), finish_reason=c.finish_reason)
            for i, c in enumerate(answers.completions)
        ],
        usage=usage_of(answers),
    )


async def answer_batch(body: ChatBatchRequest, serving: Serving[Engine]) -> ChatBatchReply:
    cost = len(body.conversations) * body.n
    async with serving.door.enter(cost), serving.pool.use(resolve(body.model, ALIGNED_MODEL)) as held:
        answers = await held.model.complete(body.conversations, body.sampling, body.n)
    return ChatBatchReply(model=held.version, completions=[each.completions for each in answers])


async def open_stream(body: ChatRequest, serving: Serving[Engine]) -> ChatStream:
    """Everything that can be refused is refused here, before the first byte of a stream."""
    sampling = sampling_of(body)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving.door.enter(body.n))
        held = await stack.enter_async_context(serving.pool.use(resolve(body.model, ALIGNED_MODEL)))
        generation = await held.model.generate(body.messages, sampling, body.n)
        stack.callback(generation.cancel)
        head = Head(new_id(), int(time.time()), held.version)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return ChatStream(head, generation, body.n, include_usage, stack.pop_all())


def sampling_of(body: ChatRequest) -> Sampling:
    """How the request wants tokens drawn; BadRequest for too many stop strings."""
    try:
        return body.sampling
    except ValidationError as error:
        raise BadRequest(f"stop: {error.errors()[0]['msg']}.", param="stop") from error


def usage_of(answers: Answers) -> Usage:
    written = sum(completion.num_tokens for completion in answers.completions)
    return Usage(
        prompt_tokens=answers.num_prompt_tokens,
        completion_tokens=written,
        total_tokens=answers.num_prompt_tokens + written,
    )


def new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"
