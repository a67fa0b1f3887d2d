"""A pipeline's training runs: queued as jobs of their own, waited for, found again after a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from services.trainer.context import Context
from services.trainer.hold import Cancelled, Interrupted, Paused
from vcllm.contracts.jobs import FINISHED, JobRecord, JobState
from vcllm.contracts.recipes import StageOrder
from vcllm.stores.jobs import HELD, IllegalMove

CANCEL_S = 8.0


class ChildFailed(ValueError):
    """A training run of the pipeline failed; carries its own sentence."""


class Children:
    """Starts and awaits stages by the version they make."""

    def __init__(self, context: Context, send: Callable[[str, str], None]) -> None:
        self.context, self.send = context, send

    def start(self, order: StageOrder) -> None:
        """Queue the run unless its version is there for good or a run for it is under way."""
        newest = self._newest(order.version)
        if newest is not None and newest.state not in FINISHED:
            return
        if (newest is None or newest.state is JobState.SUCCEEDED) and self._is_settled(order):
            return
        record, _ = self.context.jobs.create(order, queue="training", parent=self.context.record.id)
        self.send(record.id, record.queue)

    def wait(self, order: StageOrder) -> None:
        """Return once the version is committed and its pairs are acknowledged."""
        self.start(order)
        context = self.context
        while (newest := self._newest(order.version)) is not None and newest.state not in FINISHED:
            context.hold.go_on()
            self._put_back(newest)
            time.sleep(context.trainer.poll_s)
        if newest is not None and newest.state is not JobState.SUCCEEDED:
            context.hold.look()  # cancelled with the pipeline, whose record says so before its runs' records do
            raise ChildFailed(f"Stage {order.version} {newest.state.value}: {newest.error or 'no message'}")
        assert context.store.has(order.role, order.version), "a run that succeeded has committed its version"

    def put_back(self) -> None:
        """Queue again the runs that were paused with the pipeline."""
        for child in self._all():
            self._put_back(child)

    def follow(self) -> None:
        """Pause or cancel the runs as the pipeline was, and wait until no worker has one any more.

        A pause waits for checkpoints; a cancellation may come meanwhile. A worker that is about to end leaves them be.
        """
        hold, patience_s = self.context.hold, self.context.trainer.grace_s + self.context.jobs.lease_s
        if isinstance(hold.reason(), Paused):
            self._settle(Paused, self.context.jobs.ask_pause, patience_s)
        if isinstance(hold.reason(), Cancelled):
            self._settle(Cancelled, self.context.jobs.ask_cancel, CANCEL_S)

    def _settle(self, reason: type[Interrupted], ask: Callable[[str], JobRecord], patience_s: float) -> None:
        for child in self._all():
            ask(child.id)
        deadline = time.monotonic() + patience_s
        while isinstance(self.context.hold.reason(), reason) and time.monotonic() < deadline:
            if not any(child.state in HELD for child in self._all()):
                return
            time.sleep(self.context.trainer.poll_s)

    def _put_back(self, child: JobRecord) -> None:
        """Not while the pipeline itself is being paused: its record says so before its runs' records do."""
        jobs = self.context.jobs
        if child.state is JobState.PAUSED and jobs.get(self.context.record.id).state is JobState.RUNNING:
            with suppress(IllegalMove):
                jobs.move(child.id, JobState.QUEUED, attempt=0)
                self.send(child.id, child.queue)

    def _is_settled(self, order: StageOrder) -> bool:
        """Committed, and its pairs entered into the ledger: a run may have ended between the two."""
        context = self.context
        if not context.store.has(order.role, order.version):
            return False
        if not order.claims_pairs:
            return True
        return set(context.store.manifest(order.role, order.version).pairs) <= context.pairs.used_by().keys()

    def _newest(self, version: str) -> JobRecord | None:
        return next((child for child in self._all() if child.request.get("version") == version), None)

    def _all(self) -> list[JobRecord]:
        """Newest first."""
        return self.context.jobs.recent(parent=self.context.record.id, limit=1000)
