"""The Critic's routes: critiques of single answers, comparisons of two, and where texts lie."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response

from services.critic.backends import Backends
from services.critic.critic import Critic
from services.critic.settings import CriticSettings
from vcllm.contracts.critiques import (
    ComparisonItem,
    ComparisonReply,
    ComparisonRequest,
    CritiqueItem,
    CritiqueReply,
    CritiqueRequest,
    EmbeddingReply,
    EmbeddingRequest,
)
from vcllm.serving.costs import text_tokens
from vcllm.serving.service import VERSION_HEADER, Serving, build_serving, guard, serve_role
from vcllm.settings import Settings
from vcllm.web.disconnect import cancel_on_disconnect


async def critic_serving(request: Request) -> Serving[Critic]:
    serving: Serving[Critic] = request.state.serving
    return serving


ServingDep = Annotated[Serving[Critic], Depends(critic_serving)]


def create_app(server: CriticSettings | None = None, shared: Settings | None = None) -> FastAPI:
    """The Critic as an app; without arguments it is configured by the environment."""
    server, shared = server or CriticSettings(), shared or Settings()
    serving = build_serving("critic", None, server, shared, Backends(server, shared).open)
    app = serve_role(serving, shared)
    app.post("/v1/critiques", dependencies=[guard(shared, "critic")])(critique)
    app.post("/v1/comparisons", dependencies=[guard(shared, "critic")])(compare)
    app.post("/v1/embeddings", dependencies=[guard(shared, "critic")])(embed)
    return app


async def critique(body: CritiqueRequest, request: Request, response: Response, serving: ServingDep) -> CritiqueReply:
    """Judge every item once, in order; an item that could not be judged comes back unscored."""
    reply = await cancel_on_disconnect(request, judge(body, serving))
    response.headers[VERSION_HEADER] = reply.critic_version
    return reply


async def compare(
    body: ComparisonRequest, request: Request, response: Response, serving: ServingDep
) -> ComparisonReply:
    """Say of every item which answer keeps to the charter better."""
    reply = await cancel_on_disconnect(request, judge_both(body, serving))
    response.headers[VERSION_HEADER] = reply.critic_version
    return reply


async def embed(body: EmbeddingRequest, request: Request, response: Response, serving: ServingDep) -> EmbeddingReply:
    """Say of every text where it lies, in order."""
    reply = await cancel_on_disconnect(request, place(body, serving))
    response.headers[VERSION_HEADER] = reply.critic_version
    return reply


async def judge(body: CritiqueRequest, serving: Serving[Critic]) -> CritiqueReply:
    tokens = text_tokens(text for item in body.items for text in (*asked(item), item.response))
    async with serving.door.enter(len(body.items), tokens), serving.pool.use(body.model) as held:
        critiques = await held.model.critique(body.items)
    return CritiqueReply(critiques=critiques, critic_version=held.version)


async def judge_both(body: ComparisonRequest, serving: Serving[Critic]) -> ComparisonReply:
    tokens = text_tokens(
        text for item in body.items for answer in (item.first, item.second) for text in (*asked(item), answer)
    )
    async with serving.door.enter(2 * len(body.items), tokens), serving.pool.use(body.model) as held:
        comparisons = await held.model.compare(body.items)
    return ComparisonReply(comparisons=comparisons, critic_version=held.version)


async def place(body: EmbeddingRequest, serving: Serving[Critic]) -> EmbeddingReply:
    async with serving.door.enter(len(body.texts), text_tokens(body.texts)), serving.pool.use(body.model) as held:
        embeddings = await held.model.embed(body.texts)
    return EmbeddingReply(embeddings=embeddings, critic_version=held.version)


def asked(item: CritiqueItem | ComparisonItem) -> list[str]:
    """What was said before the answer."""
    return [*(message.content for message in item.history), item.query]
