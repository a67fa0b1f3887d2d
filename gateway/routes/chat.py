"""Chat: checked here, answered by an Actor, relayed byte for byte with a stamp of who answered.

No text of a conversation is logged or kept.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial

import httpx
from fastapi import APIRouter, Request, Response

from gateway.auth import Chatter, allows
from gateway.state import GatewayState, State
from vcllm.contracts.chat import ALIGNED_MODEL, ChatRequest
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import NotFound, Problem, UpstreamFailed
from vcllm.web.app import request_id
from vcllm.web.body import read_json
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.doorkeeper import DEADLINE_HEADER
from vcllm.web.problems import problem_of
from vcllm.web.replicas import Exchange
from vcllm.web.sse import stream_response

router = APIRouter()

STAMPS = ("x-vc-version", "x-vc-queue-ms")
"""Headers of an Actor's reply that go on to the client."""


@router.post("/v1/chat/completions")
async def chat(request: Request, key: Chatter, state: State) -> Response:
    """Answered by the promoted version, or by the version named where the key may name one."""
    wanted = await read_json(request, ChatRequest)
    await _check_model(wanted.model, key, state)
    async with AsyncExitStack() as held:
        await held.enter_async_context(state.door.enter())
        sent = time.perf_counter()
        exchange = await cancel_on_disconnect(request, _ask(state, wanted, request.headers.get(DEADLINE_HEADER)))
        held.push_async_callback(exchange.aclose)
        if exchange.response.status_code != 200:
            raise await cancel_on_disconnect(request, _refusal(exchange))
        if wanted.stream:
            headers = _stamps(request, exchange, waited_s=time.perf_counter() - sent)
            relay = Relay(exchange, held.pop_all())
            return stream_response(relay, headers, keep_alive_s=state.settings.keep_alive_s)
        content = await cancel_on_disconnect(request, _read(exchange))
        headers = _stamps(request, exchange, waited_s=time.perf_counter() - sent)
        return Response(content, media_type="application/json", headers=headers)
    raise AssertionError("every way out of the block above returns or raises")


class Relay:
    """The bytes of a streamed answer, cut where frames end, so that a break cannot leave half a frame."""

    def __init__(self, exchange: Exchange, held: AsyncExitStack) -> None:
        self._chunks = exchange.response.aiter_raw()
        self._held = held
        self._tail = b""

    def __aiter__(self) -> Relay:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                chunk = await anext(self._chunks)
            except httpx.HTTPError as error:
                raise UpstreamFailed("The answer broke off: its Actor is gone. Ask again.") from error
            frames, end, self._tail = (self._tail + chunk).rpartition(b"\n\n")
            if end:
                return frames + end

    async def aclose(self) -> None:
        await self._held.aclose()


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


async def _ask(state: GatewayState, wanted: ChatRequest, deadline_ms: str | None) -> Exchange:
    """What was checked is what is sent: written anew, so that no two parsers can differ about it."""
    content = wanted.model_dump_json(exclude_unset=True).encode()
    headers = {"content-type": "application/json", "x-request-id": request_id.get()}
    if deadline_ms is not None:
        headers[DEADLINE_HEADER] = deadline_ms
    try:
        return await state.actors.send("POST", "/v1/chat/completions", content=content, headers=headers)
    except httpx.TimeoutException as error:
        raise _too_slow(state) from error


async def _read(exchange: Exchange) -> bytes:
    try:
        return await exchange.response.aread()
    except httpx.HTTPError as error:
        raise UpstreamFailed("The answer broke off: its Actor is gone. Ask again.") from error


async def _refusal(exchange: Exchange) -> Problem:
    """What an Actor's error reply says to the client; what is between the Actor and us stays there."""
    status = exchange.response.status_code
    problem = problem_of(status, await _read(exchange), exchange.response.headers)
    if status in (401, 403):
        return UpstreamFailed("The Actor does not accept this gateway. Both need the same internal token.")
    if status < 400:
        return UpstreamFailed(f"The Actor answered {status}, which is no answer to a chat request.")
    return problem


def _too_slow(state: GatewayState) -> Problem:
    return UpstreamFailed(f"The Actor said nothing for {state.limits.answer_timeout_s:g} s. Ask again.")


def _stamps(request: Request, exchange: Exchange, waited_s: float) -> dict[str, str]:
    """Who answered, and how much of the time was ours."""
    ours_s = time.perf_counter() - request.scope["vc_started"] - waited_s
    passed_on = {name: exchange.response.headers[name] for name in STAMPS if name in exchange.response.headers}
    return {**passed_on, "x-vc-replica": exchange.replica.name, "x-vc-overhead-ms": f"{ours_s * 1000:.2f}"}
