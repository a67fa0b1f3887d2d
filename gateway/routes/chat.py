"""Chat: checked here, answered by an Actor, relayed byte for byte with a stamp of who answered.

No text of a conversation is logged or kept.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial

from fastapi import APIRouter, Request, Response

from gateway.asking import VERSION, ask, read_reply, refusal_of, stamps
from gateway.auth import Chatter, allows
from gateway.guarding.chat import GuardedChat
from gateway.lean import LeanRoute
from gateway.quotas.billing import Bill
from gateway.relay import Relay
from gateway.state import GatewayState, State
from vcllm.contracts.chat import ALIGNED_MODEL, ChatReply, ChatRequest
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import NotFound
from vcllm.web.body import read_json
from vcllm.web.disconnect import while_there
from vcllm.web.doorkeeper import DEADLINE_HEADER
from vcllm.web.openapi import STREAMED, json_body
from vcllm.web.replicas import Exchange
from vcllm.web.sse import stream_response
from vcllm.web.usage import reply_usage

router = APIRouter(route_class=LeanRoute)


@router.post("/v1/chat/completions", response_model=ChatReply, responses=STREAMED, openapi_extra=json_body(ChatRequest))
async def chat(request: Request, key: Chatter, state: State) -> Response:
    """Answered by the promoted version, or by the version named where the key may name one."""
    wanted = await read_json(request, ChatRequest, state.limits.max_body_bytes)
    await _check_model(wanted.model, key, state)
    # What was checked is what is sent: written anew, so that no two parsers can differ about it.
    content = wanted.model_dump_json(exclude_unset=True).encode()
    async with AsyncExitStack() as held:
        await held.enter_async_context(state.door.enter())
        bill = held.enter_context(Bill(state.quota, key, wanted, len(content)))
        if (rule := state.guard.of(key)) is not None:
            return await GuardedChat(request, state, wanted, content, bill, rule, held).answer()
        sent = time.perf_counter()
        async with while_there(request.receive):
            exchange = await ask(state, content, request.headers.get(DEADLINE_HEADER), wanted.stream)
            held.callback(exchange.close)
            if exchange.status != 200:
                raise await refusal_of(exchange)
            bill.begun = True
            if not wanted.stream:
                reply = await read_reply(exchange)
                bill.settle(reply_usage(reply))
                headers = _stamps(request, exchange, bill, state, time.perf_counter() - sent)
                return Response(reply, media_type="application/json", headers=headers)
        headers = _stamps(request, exchange, bill, state, time.perf_counter() - sent)
        relay = Relay(exchange, bill, held.pop_all())
        return stream_response(relay, headers, keep_alive_s=state.settings.keep_alive_s)
    raise AssertionError("every way out of the block above returns or raises")


async def _check_model(model: str, key: KeyRecord, state: GatewayState) -> None:
    """NotFound for a version that was not promoted, unless the key may promote it."""
    if model == ALIGNED_MODEL or allows(key, Scope.PROMOTE):
        return
    aliases = await state.actor_aliases.get("actor", partial(state.aliases.all, "actor"))
    if model not in (aliases.get("current"), aliases.get("previous")):
        raise NotFound(
            f"There is no model '{model}' for this key. Use '{ALIGNED_MODEL}', or see GET /v1/models.",
            param="model",
            code="model_not_found",
        )


def _stamps(request: Request, exchange: Exchange, bill: Bill, state: GatewayState, waited_s: float) -> dict[str, str]:
    policy = state.guard.stamps.of(exchange.headers.get(VERSION))
    return stamps(request, exchange, bill, waited_s, policy)
