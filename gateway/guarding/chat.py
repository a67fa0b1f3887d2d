"""A chat under a guard: the way through its stages, for whole replies and streams.

Without a guard none of this runs. Nothing that is not shown is logged or kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import cached_property

from fastapi import Request, Response
from pydantic import ValidationError

from gateway.asking import ask, read_reply, refusal_of, stamps
from gateway.guarding.checks import Checks
from gateway.guarding.critics import Deadline
from gateway.guarding.frames import RefusalWriter, frames_of, new_head, usage_of
from gateway.guarding.observing import ObservedStream
from gateway.guarding.opinions import gravest
from gateway.guarding.rules import Rule
from gateway.guarding.stream import GuardedStream
from gateway.quotas.billing import BYTES_PER_TOKEN, Bill
from gateway.relay import Relay
from gateway.state import GatewayState
from vcllm.contracts.chat import ChatReply, ChatRequest, Choice, ReplyMessage
from vcllm.contracts.guard import GuardStage, GuardVerdict
from vcllm.contracts.problems import UpstreamFailed
from vcllm.web.disconnect import while_there
from vcllm.web.doorkeeper import DEADLINE_HEADER, deadline_s
from vcllm.web.replicas import Exchange
from vcllm.web.sse import DONE, stream_response

NO_REPLY = "The Actor sent a reply that the guard cannot read."


class GuardedChat:
    """One request and its way to a reply."""

    def __init__(
        self,
        request: Request,
        state: GatewayState,
        wanted: ChatRequest,
        content: bytes,
        bill: Bill,
        rule: Rule,
        held: AsyncExitStack,
    ) -> None:
        """content: what the Actor is sent. held: closed with the reply, or with the stream when it is one."""
        self.request = request
        self.state = state
        self.wanted = wanted
        self.content = content
        self.bill = bill
        self.rule = rule
        self.held = held
        self.checks = Checks(rule, state.guard.critics, wanted.messages, self.deadline)
        self._waited_s = 0.0
        """For Actor and Critic."""

    @cached_property
    def deadline(self) -> Deadline:
        sent = self.request.headers.get(DEADLINE_HEADER)
        within_s = deadline_s(None if sent is None else sent.encode())
        if within_s is None:
            return Deadline(None)
        spent_s = time.perf_counter() - self.request.scope["vc_started"]
        return Deadline(asyncio.get_running_loop().time() + within_s - spent_s)

    async def answer(self) -> Response:
        begun = time.perf_counter()
        async with while_there(self.request.receive):
            stage = self.checks.earlier_stage
            if stage is GuardStage.BEFORE and self.rule.enforces:
                earlier = await self.checks.earlier(stage)
                if earlier.blocks:
                    return self._refused(earlier, time.perf_counter() - begun)
                stage = None
            else:
                earlier = GuardVerdict.PASS
            if not self.wanted.stream:
                return await self._whole(earlier, stage, begun)
            beside = None if stage is None or not self.rule.enforces else self._beside(stage)
            exchange = await self._ask()
        return self._stream(exchange, earlier, stage, beside, time.perf_counter() - begun)

    def _beside(self, stage: GuardStage) -> asyncio.Task[GuardVerdict]:
        """The check of earlier answers, which ends with the reply at the latest."""
        task = asyncio.create_task(self.checks.earlier(stage))
        self.held.push_async_callback(_stopped, task)
        return task

    async def _ask(self) -> Exchange:
        """An Actor's answer that has begun; a Problem when it refuses."""
        deadline_ms = self.deadline.headers.get(DEADLINE_HEADER)
        exchange = await ask(self.state, self.content, deadline_ms, self.wanted.stream)
        self.held.callback(exchange.close)
        if exchange.status != 200:
            raise await refusal_of(exchange)
        self.bill.begun = True
        return exchange

    # A whole reply.

    async def _whole(self, earlier: GuardVerdict, stage: GuardStage | None, begun: float) -> Response:
        """earlier: of earlier answers, as far as it is known. stage: when they are yet to be judged."""
        exchange, body, earlier = await self._asked_beside(stage, earlier)
        if body is None:
            return self._refused(earlier, time.perf_counter() - begun)
        reply = _parsed(body)
        self.bill.settle(reply.usage.total_tokens)
        verdicts = [GuardVerdict.PASS] * len(reply.choices)
        if self.rule.asks(GuardStage.AFTER) and not earlier.blocks:
            verdicts = await self.checks.answers([choice.message.content for choice in reply.choices])
        verdicts = [gravest((verdict, earlier)) for verdict in verdicts]
        waited_s = time.perf_counter() - begun
        if any(verdict.blocks for verdict in verdicts):
            body = self._rewritten(reply, verdicts).model_dump_json().encode()
        return self._reply(body, gravest((earlier, *verdicts)), waited_s, exchange)

    async def _asked_beside(
        self, stage: GuardStage | None, earlier: GuardVerdict
    ) -> tuple[Exchange | None, bytes | None, GuardVerdict]:
        """The Actor's reply, and the verdict of earlier answers that was found meanwhile; no reply when that blocks."""
        if stage is None:
            exchange, body = await self._asked()
            return exchange, body, earlier
        beside, asked = self._beside(stage), asyncio.create_task(self._asked())
        try:
            await asyncio.wait((beside, asked), return_when=asyncio.FIRST_COMPLETED)
            if not (beside.done() and beside.result().blocks):
                exchange, body = await asked
                return exchange, body, await beside
            if not asked.done():
                return None, None, beside.result()
            exchange, body = asked.result()
            return exchange, body, beside.result()
        finally:
            await _stopped(asked)

    async def _asked(self) -> tuple[Exchange, bytes]:
        exchange = await self._ask()
        return exchange, await read_reply(exchange)

    def _rewritten(self, reply: ChatReply, verdicts: Sequence[GuardVerdict]) -> ChatReply:
        """With the charter's refusal in place of what is blocked; what it cost stays."""
        choices = [
            self._refusal(choice.index) if verdict.blocks else choice
            for choice, verdict in zip(reply.choices, verdicts, strict=True)
        ]
        return reply.model_copy(update={"choices": choices})

    def _refused(self, verdict: GuardVerdict, waited_s: float) -> Response:
        """Nothing was asked of an Actor, or its work was stopped."""
        if self.wanted.stream:
            headers = self._headers(verdict, waited_s, None)
            self.state.guard.count(verdict)
            return stream_response(_once(self._refused_frames(verdict)), headers)
        head = new_head("chat.completion", self.wanted.model)
        choices = [self._refusal(index) for index in range(self.wanted.n)]
        reply = ChatReply(**head, choices=choices, usage=usage_of(0, 0))
        return self._reply(reply.model_dump_json().encode(), verdict, waited_s, None)

    def _refused_frames(self, verdict: GuardVerdict) -> bytes:
        write = RefusalWriter(self.wanted.model, self.wanted.stream_options.include_usage)
        told, text = self.checks.told(verdict), self.checks.refusal
        answers = [write.role(index) + write.refusal(index, text, told) for index in range(self.wanted.n)]
        return b"".join(answers) + write.usage(0, 0) + DONE

    def _refusal(self, index: int) -> Choice:
        return Choice(index=index, message=ReplyMessage(content=self.checks.refusal), finish_reason="content_filter")

    def _reply(self, body: bytes, verdict: GuardVerdict, waited_s: float, exchange: Exchange | None) -> Response:
        self.state.guard.count(verdict)
        return Response(body, media_type="application/json", headers=self._headers(verdict, waited_s, exchange))

    # A stream.

    def _stream(
        self,
        exchange: Exchange,
        earlier: GuardVerdict,
        stage: GuardStage | None,
        beside: asyncio.Task[GuardVerdict] | None,
        waited_s: float,
    ) -> Response:
        headers = self._headers(GuardVerdict.PENDING, waited_s, exchange)
        keep_alive_s, guard = self.state.settings.keep_alive_s, self.state.guard
        if not self.rule.enforces:
            relay = Relay(exchange, self.bill, self.held.pop_all())
            observed = ObservedStream(relay, self.checks.unhurried(), stage, guard.count_later)
            return stream_response(observed, headers, keep_alive_s=keep_alive_s)
        stream = GuardedStream(
            self.checks,
            self.wanted,
            frames_of(exchange),
            self.bill,
            len(self.content) // BYTES_PER_TOKEN,
            self.held.pop_all(),
            earlier=earlier,
            beside=beside,
            done=guard.count,
        )
        return stream_response(stream, headers, keep_alive_s=keep_alive_s)

    def _headers(self, verdict: GuardVerdict, waited_s: float, exchange: Exchange | None) -> dict[str, str]:
        told = stamps(self.request, exchange, self.bill, waited_s, self.checks.headers(verdict))
        told["server-timing"] += f", guard;dur={self.checks.seconds * 1000:.1f}"
        return told


def _parsed(body: bytes) -> ChatReply:
    """UpstreamFailed for one with a field that could hold a text which is not judged."""
    try:
        return ChatReply.model_validate_json(body)
    except ValidationError as error:
        raise UpstreamFailed(NO_REPLY) from error


async def _once(frames: bytes) -> AsyncIterator[bytes]:
    yield frames


async def _stopped(task: asyncio.Task[object]) -> None:
    """It has ended when this returns; what it raised is not of interest any more."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
