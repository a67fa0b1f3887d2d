"""The gateway's guard as a whole: its rules, the Critic it asks, and the count of what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any

from gateway.guarding.critics import Critics
from gateway.guarding.meter import GuardMeter
from gateway.guarding.rules import Rule, Rules
from gateway.guarding.stamps import Stamps
from gateway.settings import GatewaySettings
from vcllm.contracts.guard import GuardMode, GuardVerdict
from vcllm.contracts.keys import KeyRecord
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore
from vcllm.web.replicas import Headers, ReplicaTable

Finding = Callable[[], Coroutine[Any, Any, GuardVerdict]]
MOST_BESIDE = 256
"""Checks of streams that were already shown; those that are too many are not made, and counted as unscored."""


class Guard:
    """An async context manager: the Critic is looked for from the start where the charter's mode is on."""

    def __init__(self, rules: Rules, critics: Critics, stamps: Stamps, meter: GuardMeter) -> None:
        self.rules = rules
        self.critics = critics
        self.stamps = stamps
        self._meter = meter
        self._beside: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Guard:
        if self.rules.policy.mode is not GuardMode.OFF:
            await self.critics.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self.stamps.close()
        await self.critics.close()

    def of(self, key: KeyRecord) -> Rule | None:
        """None: the guard is off for it."""
        return self.rules.of(key)

    def count(self, verdict: GuardVerdict) -> None:
        """Of a whole reply."""
        self._meter.verdicts.labels(verdict.value).inc()

    def count_later(self, finding: Finding) -> None:
        """Of a reply that does not wait for its verdict."""
        if len(self._beside) >= MOST_BESIDE:
            self.count(GuardVerdict.UNSCORED)
            return
        task = asyncio.create_task(self._count(finding))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _count(self, finding: Finding) -> None:
        self.count(await finding())


def build_guard(
    rules: Rules, settings: Settings, limits: GatewaySettings, headers: Headers, meter: GuardMeter
) -> Guard:
    """headers: of every request to a Critic."""
    table = partial(ReplicaTable, settings.urls("critic"), silence_s=limits.guard_timeout_s, headers=headers)
    critics = Critics(table, limits.guard_timeout_s, meter)
    return Guard(rules, critics, Stamps(rules, ModelStore(settings.models)), meter)
