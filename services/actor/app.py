"""The Actor's routes: chat, streamed or whole, many conversations at once, and the list of versions."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, Request, Response
from redis.exceptions import RedisError

from services.actor.frames import ChatStream, Head
from services.actor.settings import ActorSettings
from services.actor.spans import asked, used
from vcllm.contracts.base import NAME_PATTERN
from vcllm.contracts.chat import (
    ALIGNED_MODEL,
    ChatBatchReply,
    ChatBatchRequest,
    ChatReply,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    Completion,
    ModelCard,
    ModelList,
    ReplyMessage,
    Usage,
)
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import NotFound
from vcllm.engine.protocol import Answers, Engine
from vcllm.serving.pool import resolve
from vcllm.serving.service import QUEUE_HEADER, VERSION_HEADER, Serving, guard, serve_role
from vcllm.serving.writing import build_writer
from vcllm.settings import Settings
from vcllm.web.body import read_json
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.openapi import STREAMED, json_body
from vcllm.web.sse import stream_response
from vcllm.web.tracing import note
from vcllm.web.usage import USAGE_HEADER

if TYPE_CHECKING:  # these bring torch, which a role with an upstream does without
    from vcllm.engine.load import Loaded
    from vcllm.engine.local import LocalEngine


async def actor_serving(request: Request) -> Serving[Engine]:
    serving: Serving[Engine] = request.state.serving
    return serving


ServingDep = Annotated[Serving[Engine], Depends(actor_serving)]


def create_app(
    server: ActorSettings | None = None,
    shared: Settings | None = None,
    *,
    engine: Callable[[Loaded], LocalEngine] | None = None,
) -> FastAPI:
    """The Actor as an app; without arguments it is configured by the environment.

    engine: makes of a loaded version what answers; None: one with the server's limits.
    """
    server, shared = server or ActorSettings(), shared or Settings()
    serving, collectors = build_writer("actor", server, shared, engine)
    app = serve_role(serving, shared, *collectors)
    internal = [guard(shared, "actor", server.model_key if server.model_path is not None else None)]
    app.read_by_hand = [ChatRequest]
    app.post(
        "/v1/chat/completions",
        dependencies=internal,
        response_model=ChatReply,
        responses=STREAMED,
        openapi_extra=json_body(ChatRequest),
    )(chat)
    app.post("/v1/chat/completions/batch", dependencies=internal)(chat_batch)
    app.get("/v1/models", dependencies=internal)(list_models)
    app.get("/v1/models/{model}", dependencies=internal)(get_model)
    return app


async def chat_request(request: Request) -> ChatRequest:
    return await read_json(request, ChatRequest)


async def chat(body: Annotated[ChatRequest, Depends(chat_request)], request: Request, serving: ServingDep) -> Response:
    """Answer one conversation, n times, with `vc-llm` or any version of the store."""
    if body.stream:
        tell_usage = USAGE_HEADER in request.headers
        stream = await cancel_on_disconnect(request, open_stream(body, serving, tell_usage))
        return stream_response(stream, {VERSION_HEADER: stream.head.model}, keep_alive_s=serving.keep_alive_s)
    reply, answers = await cancel_on_disconnect(request, answer(body, serving))
    headers = {VERSION_HEADER: reply.model, QUEUE_HEADER: f"{answers.queue_s * 1000:.1f}"}
    return Response(reply.model_dump_json(), media_type="application/json", headers=headers)


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
    cards = [card(each, aliases, serving) for each in serving.store.manifests("actor")]
    created = next((each.created for each in cards if each.id == serving.pool.current), 0)
    fixed = ModelCard(id=ALIGNED_MODEL, created=created, parent=serving.pool.current)
    return ModelList(data=[fixed, *cards] if serving.pool.current else cards)


def get_model(model: str, serving: ServingDep) -> ModelCard:
    """One of the list."""
    for each in list_models(serving).data:
        if each.id == model:
            return each
    raise no_model(model)


def card(manifest: Manifest, aliases: dict[str, str], serving: Serving[Engine]) -> ModelCard:
    """One version, with the aliases that point at it."""
    return ModelCard(
        id=manifest.name,
        created=int(manifest.created),
        parent=manifest.parent,
        alias=sorted(alias for alias, version in aliases.items() if version == manifest.name),
        checksum=serving.store.checksum("actor", manifest.name),
    )


async def answer(body: ChatRequest, serving: Serving[Engine]) -> tuple[ChatReply, Answers]:
    """A whole reply, and what it was made from."""
    sampling, version = body.sampling, version_named(body.model, serving)
    async with serving.admit([body.messages], sampling.max_tokens, body.n), serving.pool.use(version) as held:
        [answers] = await held.model.complete([body.messages], sampling, body.n)
    serving.meter.answered([answers])
    note(asked(body, held.version))
    note(used(answers.num_prompt_tokens, sum(each.num_tokens for each in answers.completions)))
    note({"gen_ai.response.finish_reasons": [each.finish_reason for each in answers.completions]})
    reply = ChatReply(
        id=new_id(),
        created=int(time.time()),
        model=held.version,
        system_fingerprint=serving.fingerprint(held.version),
        choices=[choice(index, completion) for index, completion in enumerate(answers.completions)],
        usage=usage_of(answers),
    )
    return reply, answers


async def answer_batch(body: ChatBatchRequest, serving: Serving[Engine]) -> ChatBatchReply:
    version = version_named(body.model, serving)
    room = serving.admit(body.conversations, body.sampling.max_tokens, body.n)
    async with room, serving.pool.use(version) as held:
        answers = await held.model.complete(body.conversations, body.sampling, body.n)
    serving.meter.answered(answers)
    return ChatBatchReply(model=held.version, completions=[each.completions for each in answers])


async def open_stream(body: ChatRequest, serving: Serving[Engine], tell_usage: bool) -> ChatStream:
    """Everything that can be refused is refused here, before the first byte of a stream."""
    async with AsyncExitStack() as stack:
        sampling = body.sampling
        entry = await stack.enter_async_context(serving.admit([body.messages], sampling.max_tokens, body.n))
        held = await stack.enter_async_context(serving.pool.use(version_named(body.model, serving)))
        generation = await held.model.generate(body.messages, sampling, body.n)
        stack.callback(generation.cancel)
        serving.correct(entry, generation, sampling.max_tokens, body.n)
        note(asked(body, held.version))
        return ChatStream(
            Head(new_id(), int(time.time()), held.version, serving.fingerprint(held.version)),
            serving.meter.follow(generation, entry.since, body.n),
            body.n,
            stack.pop_all(),
            include_usage=body.stream_options.include_usage,
            tell_usage=tell_usage,
            logprobs=body.logprobs,
        )


def version_named(model: str, serving: Serving[Engine]) -> str | None:
    """None: the current one. NotFound for what cannot be a version's name; an upstream's model may have any."""
    version = resolve(model, ALIGNED_MODEL)
    if version is None or version == serving.pool.current or re.fullmatch(NAME_PATTERN, version):
        return version
    raise no_model(model)


def no_model(name: str) -> NotFound:
    return NotFound(f"There is no model '{name}'. See GET /v1/models.", param="model", code="model_not_found")


def choice(index: int, completion: Completion) -> Choice:
    """One answer, as the OpenAI API shows it."""
    return Choice(
        index=index,
        message=ReplyMessage(content=completion.text),
        logprobs=None if completion.logprobs is None else ChoiceLogprobs(content=completion.logprobs),
        finish_reason=completion.finish_reason,
    )


def usage_of(answers: Answers) -> Usage:
    written = sum(completion.num_tokens for completion in answers.completions)
    return Usage(
        prompt_tokens=answers.num_prompt_tokens,
        completion_tokens=written,
        total_tokens=answers.num_prompt_tokens + written,
    )


def new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"
