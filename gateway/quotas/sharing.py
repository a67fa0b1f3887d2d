"""Keeps the limits of several gateways in step: once a second this one tells Redis what it spent, and hears the rest.

Nobody who asks for something waits for it. While Redis does not answer, what was spent is kept and told later.

How exactly n gateways hold one limit: what is spent beyond it is paid back, so over time it holds. At the worst moment
they are ahead by one request each and, for each that had not seen the key for a while, by its n-th part of the limit;
because it asks at once, some per cent of the limit are what is measured (`tests/unit/test_gateway_sharing.py`). In its
first moments a gateway takes itself for the only one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TypeVar

from anyio import CapacityLimiter, move_on_after, to_thread
from redis.exceptions import RedisError

from gateway.quotas.accounts import Account
from gateway.quotas.limits import Limits
from vcllm.stores.limits import LimitStore, Shared, Spent

T = TypeVar("T")

EVERY_S = 1.0
SOONEST_S = 0.05
"""Between two exchanges that were asked for."""
LAST_TRIP_S = 2.0
"""How long the last exchange of a gateway that stops may take."""
MAX_ACCOUNTS = 500
"""In one trip, so that Redis is not kept from others for long."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trip:
    """What is told at once; made again as it is until it was answered."""

    number: int
    spent: list[Spent]
    used: dict[str, float]


class Sharing:
    """One gateway's exchange with the others."""

    def __init__(self, limits: Limits, store: LimitStore, used: dict[str, float]) -> None:
        """used: key id to the Unix second it was last used; emptied as it is told."""
        self.limits = limits
        self.store = store
        self.used = used
        self.gateway = f"gw-{secrets.token_hex(8)}"
        self._is_lost = False
        self._trip: Trip | None = None
        self._num_trips = 0
        self._wanted = asyncio.Event()
        self._thread: CapacityLimiter | None = None
        limits.wake = self._wanted.set

    @property
    def is_wanted(self) -> bool:
        """Somebody asked for an exchange before its time."""
        return self._wanted.is_set()

    async def run(self) -> None:
        """Until it is cancelled; then once more, so that nothing spent is lost."""
        try:
            while True:
                pause_s = EVERY_S
                if await self.exchange():
                    await asyncio.sleep(SOONEST_S)
                    pause_s -= SOONEST_S
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wanted.wait(), pause_s)
                else:
                    await asyncio.sleep(pause_s)
                self.limits.forget_idle()
        finally:
            with move_on_after(LAST_TRIP_S, shield=True):
                await self._leave()

    async def exchange(self) -> bool:
        """One trip; whether it was answered. What was not is told again, under the same number."""
        self._wanted.clear()
        trip = self._trip = self._trip or self._pack()
        try:
            shared = await self._in_thread(
                partial(self.store.exchange, self.gateway, trip.number, trip.spent, trip.used)
            )
        except (RedisError, OSError) as error:
            if not self._is_lost:
                log.warning("Redis does not answer (%s): limits of keys are kept here alone.", type(error).__name__)
            self._is_lost = True
            return False
        if self._is_lost:
            log.warning("Redis answers again: limits of keys are kept by all gateways together.")
        self._trip, self._is_lost = None, False
        self._unpack(trip, shared)
        return True

    def _pack(self) -> Trip:
        due = self._due()
        if len(due) > MAX_ACCOUNTS:
            self._wanted.set()
        self._num_trips += 1
        trip = Trip(self._num_trips, [account.begin_exchange() for account in due[:MAX_ACCOUNTS]], dict(self.used))
        self.used.clear()
        return trip

    def _due(self) -> list[Account]:
        """Those first that were told longest ago: one with a chat under way has news at every trip."""
        due = [account for account in self.limits.accounts.values() if account.is_due]
        return sorted(due, key=attrgetter("known_at"))

    def _unpack(self, trip: Trip, shared: Shared) -> None:
        self.limits.share = 1 / shared.num_gateways
        now = self.limits.clock()
        for told in trip.spent:
            if account := self.limits.accounts.get(told.account):
                account.end_exchange(told, shared.left[told.account], self.limits.share, now)

    async def _leave(self) -> None:
        if self._trip is not None and not await self.exchange():
            return
        for _ in range(1 + len(self._due()) // MAX_ACCOUNTS):
            if not await self.exchange():
                return
        with suppress(RedisError, OSError):
            await self._in_thread(partial(self.store.leave, self.gateway))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._thread = self._thread or CapacityLimiter(1)
        return await to_thread.run_sync(work, limiter=self._thread, abandon_on_cancel=True)
