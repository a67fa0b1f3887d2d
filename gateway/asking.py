"""Asking an Actor for a chat: the request it gets, what its refusals say to a client, and the stamps of a reply.

What is between the Actor and the gateway stays there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import Request

from gateway.quotas.billing import Bill
from gateway.state import GatewayState
from vcllm.contracts.problems import Problem, UpstreamFailed
from vcllm.web.doorkeeper import DEADLINE_HEADER
from vcllm.web.http_reply import BrokeOff
from vcllm.web.problems import problem_of
from vcllm.web.replicas import Exchange
from vcllm.web.usage import USAGE_HEADER

VERSION = "x-vc-version"
PASSED_ON = (VERSION, "x-vc-queue-ms")
"""Headers of an Actor's reply that go on to the client."""
BROKE_OFF = "The answer broke off: its Actor is gone. Ask again."


async def ask(state: GatewayState, content: bytes, deadline_ms: str | None, stream: bool) -> Exchange:
    """The beginning of an Actor's reply, whatever its status. UpstreamFailed after a long silence."""
    headers = {"content-type": "application/json"}
    if stream:
        headers[USAGE_HEADER] = "1"
    if deadline_ms is not None:
        headers[DEADLINE_HEADER] = deadline_ms
    try:
        return await state.actors.send("POST", "/v1/chat/completions", content=content, headers=headers)
    except TimeoutError as error:
        raise UpstreamFailed(f"The Actor said nothing for {state.limits.answer_timeout_s:g} s. Ask again.") from error


async def read_reply(exchange: Exchange) -> bytes:
    """The whole body; UpstreamFailed when it breaks off."""
    try:
        return await exchange.read()
    except (BrokeOff, TimeoutError) as error:
        raise UpstreamFailed(BROKE_OFF) from error


async def refusal_of(exchange: Exchange) -> Problem:
    """What an Actor's error reply says to the client."""
    status = exchange.status
    problem = problem_of(status, await read_reply(exchange), exchange.headers)
    if status in (401, 403):
        return UpstreamFailed("The Actor does not accept this gateway. Both need the same internal token.")
    if status < 400:
        return UpstreamFailed(f"The Actor answered {status}, which is no answer to a chat request.")
    return problem


def stamps(
    request: Request, exchange: Exchange | None, bill: Bill, waited_s: float, policy: Mapping[str, str]
) -> dict[str, str]:
    """Who answered under which policy, and how much of the time was ours.

    waited_s: for others. exchange: None: no Actor was asked.
    """
    ours_ms = (time.perf_counter() - request.scope["vc_started"] - waited_s) * 1000
    timing = f"gateway;dur={ours_ms:.2f}, upstream;dur={waited_s * 1000:.1f}"
    told = {**bill.headers, **policy, "x-vc-overhead-ms": f"{ours_ms:.2f}", "server-timing": timing}
    if exchange is not None:
        told["x-vc-replica"] = exchange.replica.name
        for name in PASSED_ON:
            if name in exchange.headers:
                told[name] = exchange.headers[name]
    return told
