"""The Attacker's one route: goals in, queries out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response

from services.attacker.refusals import is_refusal
from services.attacker.settings import AttackerSettings
from vcllm.alignment.briefs import reply_text, with_history
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
    app.post("/v1/attacks", dependencies=[guard(shared, "attacker")])(attack)
    return app


async def attack(body: AttackRequest, request: Request, response: Response, serving: ServingDep) -> AttackReply:
    """Write one query for every goal, in order; with histories, the next turn of each conversation."""
    reply = await cancel_on_disconnect(request, write_attacks(body, serving))
    response.headers[VERSION_HEADER] = reply.attacker_version
    return reply


async def write_attacks(body: AttackRequest, serving: Serving[Engine]) -> AttackReply:
    histories = body.histories or [[] for _ in body.goals]
    asked = list(zip(body.goals, histories, strict=True))
    conversations = [[ChatMessage(role="user", content=prompt(goal, history))] for goal, history in asked]
    sampling = Sampling(temperature=body.temperature, max_tokens=body.max_tokens, seed=body.seed)
    async with serving.admit(conversations, body.max_tokens), serving.pool.use(body.model) as held:
        answers = await held.model.complete(conversations, sampling)
    serving.meter.answered(answers)
    attacks = [
        to_attack(goal, each.completions[0], history) for (goal, history), each in zip(asked, answers, strict=True)
    ]
    return AttackReply(attacks=attacks, attacker_version=held.version)


def prompt(goal: AttackGoal, history: Sequence[ChatMessage] = ()) -> str:
    """What is asked for the goal's next turn: a short line, or its brief with the conversation so far."""
    return with_history(goal.brief, goal, history) if goal.brief else attack_prompt(goal, history)


def to_attack(goal: AttackGoal, completion: Completion, history: Sequence[ChatMessage] = ()) -> Attack:
    """What was written, with the conversation before it; only who was given a brief dresses a query up."""
    query = reply_text(completion.text) if goal.brief else completion.text.strip()
    refused, complete = is_refusal(query), completion.finish_reason == "stop"
    return Attack(goal=goal, query=query, history=list(history), refused=refused, complete=complete)
