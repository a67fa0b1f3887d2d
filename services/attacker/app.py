"""The Attacker's one route: goals in, queries out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response

from services.attacker.refusals import is_refusal
from services.attacker.settings import AttackerSettings
from vcllm.contracts.attacks import Attack, AttackGoal, AttackReply, AttackRequest, attack_prompt
from vcllm.contracts.chat import ChatMessage, Completion, Sampling
from vcllm.engine.protocol import Engine
from vcllm.serving.service import VERSION_HEADER, Serving, guard, serve_role
from vcllm.serving.writing import build_writer
from vcllm.settings import Settings
from vcllm.web.disconnect import cancel_on_disconnect


async def attacker_serving(request: Request) -> Serving[Engine]:
    serving: Serving[Engine] = request.state.serving
    return serving


ServingDep = Annotated[Serving[Engine], Depends(attacker_serving)]


def create_app(server: AttackerSettings | None = None, shared: Settings | None = None) -> FastAPI:
    """The Attacker as an app; without arguments it is configured by the environment."""
    server, shared = server or AttackerSettings(), shared or Settings()
    serving, collectors = build_writer("attacker", server, shared)
    app = serve_role(serving, shared, *collectors)
    app.post("/v1/attacks", dependencies=[guard(shared)])(attack)
    return app


async def attack(body: AttackRequest, request: Request, response: Response, serving: ServingDep) -> AttackReply:
    """Write one query for every goal, in order."""
    reply = await cancel_on_disconnect(request, write_attacks(body, serving))
    response.headers[VERSION_HEADER] = reply.attacker_version
    return reply


async def write_attacks(body: AttackRequest, serving: Serving[Engine]) -> AttackReply:
    conversations = [[ChatMessage(role="user", content=attack_prompt(goal))] for goal in body.goals]
    sampling = Sampling(temperature=body.temperature, max_tokens=body.max_tokens, seed=body.seed)
    async with serving.admit(conversations, body.max_tokens), serving.pool.use(body.model) as held:
        answers = await held.model.complete(conversations, sampling)
    serving.meter.answered(answers)
    attacks = [to_attack(goal, each.completions[0]) for goal, each in zip(body.goals, answers, strict=True)]
    return AttackReply(attacks=attacks, attacker_version=held.version)


def to_attack(goal: AttackGoal, completion: Completion) -> Attack:
    query = completion.text.strip()
    return Attack(goal=goal, query=query, refused=is_refusal(query), complete=completion.finish_reason == "stop")
