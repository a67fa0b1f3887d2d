"""Holding a job: the lease is renewed in the background, and the work asks now and then whether to go on."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from redis.exceptions import RedisError

from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.stores.jobs import JobStore, StaleToken

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Somebody asked for the job to end."""


class Hold:
    """The right to work on one job, while it lasts. Use as a context manager."""

    def __init__(self, jobs: JobStore, record: JobRecord) -> None:
        self.jobs = jobs
        self.job_id = record.id
        self.token = record.token
        self._cancelled = threading.Event()
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{record.id}", daemon=True)

    def __enter__(self) -> Hold:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=30)
        if not self._lost.is_set():
            self.jobs.release(self.job_id, self.token)

    def go_on(self) -> None:
        """Return while the job is ours and wanted; raise Cancelled or StaleToken otherwise. Cheap: no network."""
        if self._lost.is_set():
            raise StaleToken(self.job_id)
        if self._cancelled.is_set():
            raise Cancelled(self.job_id)

    def confirm(self) -> None:
        """Ask Redis, before a write that matters, whether our token is still the newest."""
        self.go_on()
        self.jobs.check(self.job_id, self.token)

    def _renew(self) -> None:
        """Renew four times per lease, look for a cancellation every second or oftener."""
        pause = min(1.0, self.jobs.lease_s / 4)
        rounds_per_renewal = max(1, int(self.jobs.lease_s / 4 / pause))
        count = 0
        while not self._done.wait(pause):
            count += 1
            try:
                if count % rounds_per_renewal == 0:
                    self.jobs.renew(self.job_id, self.token)
                if self.jobs.get(self.job_id).state is JobState.CANCELLING:
                    self._cancelled.set()
            except StaleToken:
                self._lost.set()
                return
            except RedisError:
                log.warning("Redis does not answer; the lease of %s waits", self.job_id)
