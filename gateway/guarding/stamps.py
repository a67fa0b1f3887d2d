"""What a reply that no guard looked at says of policy: the charter under which its version was trained.

The manifest is read in a thread, once for each version; no reply waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from anyio import to_thread

from gateway.guarding.rules import Rules, policy_stamp
from vcllm.contracts.guard import NOT_CHECKED, GuardMode, GuardVerdict
from vcllm.contracts.problems import Problem
from vcllm.stores.models import Damaged, ModelStore

UNKNOWN = f"unknown:{GuardMode.OFF}"
"""Until the manifest was read, and where there is none, as for a hosted model."""
OTHER = "other"
"""Stands for the name of a charter that is not the gateway's: a manifest has its hash only."""
LOOK_AGAIN_S = 60.0
MOST_KEPT = 1000


class Stamps:
    """For one event loop."""

    def __init__(self, rules: Rules, models: ModelStore) -> None:
        self._rules = rules
        self._models = models
        self._known: dict[str, Mapping[str, str]] = {}
        self._asked: dict[str, float] = {}
        """Versions without a manifest, or whose manifest is being read: when they were looked for."""
        self._reading: set[asyncio.Task[None]] = set()
        self._unknown = _headers(UNKNOWN)

    def of(self, version: str | None) -> Mapping[str, str]:
        """Headers of an unchecked reply of this version."""
        known = self._known.get(version or "")
        return self._look_for(version) if known is None else known

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def _look_for(self, version: str | None) -> Mapping[str, str]:
        now = time.monotonic()
        if version and now - self._asked.get(version, -LOOK_AGAIN_S) >= LOOK_AGAIN_S:
            if len(self._asked) >= MOST_KEPT:
                self._asked.clear()
                self._known.clear()
            self._asked[version] = now
            task = asyncio.create_task(self._read(version))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        return self._unknown

    async def _read(self, version: str) -> None:
        try:
            manifest = await to_thread.run_sync(self._models.manifest, "actor", version)
        except (Problem, Damaged, OSError):
            return
        name = self._rules.charter if manifest.charter == self._rules.charter_hash else OTHER
        self._known[version] = _headers(policy_stamp(name, manifest.charter, GuardMode.OFF))


def _headers(policy: str) -> Mapping[str, str]:
    return {
        "x-vc-critic-version": NOT_CHECKED,
        "x-vc-policy": policy,
        "x-vc-verdict": GuardVerdict.UNCHECKED.value,
        "x-vc-guard-ms": "0",
    }
