"""A pipeline's training runs: queued as jobs of their own, waited for, found again after a restart."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.trainer.context import Context
from vcllm.contracts.jobs import FINISHED, JobRecord, JobState
from vcllm.contracts.recipes import StageOrder

CANCEL_S = 8.0
LIVE = (JobState.QUEUED, JobState.RUNNING, JobState.PAUSING, JobState.PAUSED)


class ChildFailed(ValueError):
    """A training run of the pipeline failed; carries its own sentence."""


class Children:
    """Starts and awaits stages by the version they make."""

    def __init__(self, context: Context, send: Callable[[str, str], None]) -> None:
        self.context, self.send = context, send

    def start(self, order: StageOrder) -> None:
        """Queue the run unless its version is there or a run for it is under way."""
        context = self.context
        if context.store.has(order.role, order.version) and not self._find(order.version):
            return
        if self._find(order.version) is None:
            record, _ = context.jobs.create(order, queue="training", parent=context.record.id)
            self.send(record.id, record.queue)

    def wait(self, order: StageOrder) -> None:
        """Return once the version is committed and its pairs are acknowledged."""
        self.start(order)
        context = self.context
        while self._find(order.version) is not None:
            context.hold.go_on()
            time.sleep(context.trainer.poll_s)
        newest = self._newest(order.version)
        if newest is not None and newest.state is not JobState.SUCCEEDED:
            raise ChildFailed(f"Stage {order.version} {newest.state.value}: {newest.error or 'no message'}")
        assert context.store.has(order.role, order.version), "a run that succeeded has committed its version"

    def cancel_all(self) -> None:
        """Ask every run of this pipeline to end, and wait until they have, for up to `CANCEL_S`."""
        for child in self._all():
            if child.state in LIVE:
                self.context.jobs.ask_cancel(child.id)
        deadline = time.monotonic() + CANCEL_S
        while any(child.state not in FINISHED for child in self._all()) and time.monotonic() < deadline:
            time.sleep(self.context.trainer.poll_s)

    def _find(self, version: str) -> JobRecord | None:
        newest = self._newest(version)
        return newest if newest is not None and newest.state in (*LIVE, JobState.CANCELLING) else None

    def _newest(self, version: str) -> JobRecord | None:
        return next((child for child in self._all() if child.request.get("version") == version), None)

    def _all(self) -> list[JobRecord]:
        return self.context.jobs.recent(parent=self.context.record.id, limit=1000)
