"""Asking the Critic's servers, within the time a check may take; what they do not answer is an outage, never a pass."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from contextvars import Context

from pydantic import ValidationError

from gateway.guarding.meter import GuardMeter
from gateway.guarding.opinions import Look
from vcllm.contracts.critiques import Critique, CritiqueItem, CritiqueReply, CritiqueRequest
from vcllm.contracts.guard import GuardStage
from vcllm.contracts.problems import DeadlineExceeded, Problem
from vcllm.web.doorkeeper import DEADLINE_HEADER
from vcllm.web.http_reply import BrokeOff
from vcllm.web.replicas import ReplicaTable

log = logging.getLogger(__name__)

UNREADABLE = (400, 413, 422)
"""Statuses of a Critic that is well and cannot read what it was sent."""
TOO_LATE = f"The answer was not ready within the {DEADLINE_HEADER} of the request."


class Deadline:
    """When a client stops waiting; what is asked on its behalf ends then."""

    def __init__(self, ends_at: float | None) -> None:
        """By the loop's clock; None: never."""
        self.ends_at = ends_at

    @property
    def left_s(self) -> float | None:
        """None: for ever. DeadlineExceeded when nothing is left."""
        if self.ends_at is None:
            return None
        left_s = self.ends_at - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded(TOO_LATE)
        return left_s

    @property
    def headers(self) -> dict[str, str]:
        """For a server that is asked now."""
        left_s = self.left_s
        return {} if left_s is None else {DEADLINE_HEADER: str(max(1, int(left_s * 1000)))}


class Critics:
    """The Critic's replicas. They are looked for when a guard first needs them."""

    def __init__(self, table: Callable[[], ReplicaTable], timeout_s: float, meter: GuardMeter) -> None:
        """timeout_s: of one check, over all replicas that are tried."""
        self.table: ReplicaTable | None = None
        self.timeout_s = timeout_s
        self._meter = meter
        self._make_table = table
        self._held = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._was_out = False

    async def open(self) -> ReplicaTable:
        async with self._opening:
            if self.table is None:
                entering = self._held.enter_async_context(self._make_table())
                # In a context of its own: the table's probes are no part of the request that happens to be the first.
                self.table = await asyncio.create_task(entering, context=Context())
        return self.table

    async def close(self) -> None:
        await self._held.aclose()

    async def look(self, stage: GuardStage, items: Sequence[CritiqueItem | None], deadline: Deadline) -> Look:
        """One critique for each item; None: nothing to ask about. DeadlineExceeded when the client's time is over."""
        asked = [item for item in items if item is not None]
        if not asked:
            return Look([None] * len(items))
        begun = time.perf_counter()
        try:
            found = await self._within(asked, deadline)
        finally:
            seconds = time.perf_counter() - begun
            self._meter.seconds.labels(stage.value).observe(seconds)
        if found is None:
            return Look([None] * len(items), seconds=seconds, out=True)
        critiques, critic = found
        left = iter(critiques)
        return Look([None if item is None else next(left) for item in items], critic, seconds)

    async def _within(
        self, items: Sequence[CritiqueItem], deadline: Deadline
    ) -> tuple[Sequence[Critique | None], str | None] | None:
        """None: an outage."""
        left_s = deadline.left_s
        try:
            async with asyncio.timeout(self.timeout_s if left_s is None else min(left_s, self.timeout_s)):
                found = await self._ask(items, deadline)
        except DeadlineExceeded:
            raise
        except (Problem, BrokeOff, TimeoutError, ValidationError, _Refused) as error:
            # A timer may go off a moment early, so the clock does not tell whose time it was that is over.
            if isinstance(error, TimeoutError) and left_s is not None and left_s <= self.timeout_s:
                raise DeadlineExceeded(TOO_LATE) from error
            self._note_outage(str(error) if isinstance(error, _Refused) else type(error).__name__)
            return None
        if self._was_out:
            self._was_out = False
            log.warning("The Critic answers the guard again.")
        return found

    async def _ask(
        self, items: Sequence[CritiqueItem], deadline: Deadline
    ) -> tuple[Sequence[Critique | None], str | None]:
        table = self.table or await self.open()
        content = CritiqueRequest(items=list(items)).model_dump_json().encode()
        headers = {"content-type": "application/json", **deadline.headers}
        with await table.send("POST", "/v1/critiques", content=content, headers=headers) as exchange:
            body = await exchange.read()
        if exchange.status in UNREADABLE:
            return [None] * len(items), None
        if exchange.status == DeadlineExceeded.status and deadline.ends_at is not None:
            raise DeadlineExceeded(TOO_LATE)
        if exchange.status != 200:
            raise _Refused(f"status {exchange.status}")
        reply = CritiqueReply.model_validate_json(body)
        if len(reply.critiques) != len(items):
            raise _Refused("another number of critiques than was asked for")
        return reply.critiques, reply.critic_version

    def _note_outage(self, kind: str) -> None:
        """Logged once, until it is over: every reply that it concerns says so by itself."""
        self._meter.outages.inc()
        if not self._was_out:
            self._was_out = True
            log.error("The Critic does not answer the guard: %s.", kind)


class _Refused(Exception):
    """Which is as good as no answer."""
