"""Holding a job: the lease is renewed in the background, and the work asks now and then whether to go on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from redis.exceptions import RedisError

from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.stores.jobs import JobStore, StaleToken

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The work is to be left where it stands; the job's record decides what becomes of the job."""


class Cancelled(Interrupted):
    """Somebody asked for the job to end."""


class Paused(Interrupted):
    """Somebody asked for the job to wait."""


class Draining(Interrupted):
    """This worker is about to end; another one, or this one after its restart, carries on."""


ASKED = {JobState.CANCELLING: Cancelled, JobState.PAUSING: Paused}


class Hold:
    """The right to work on one job, while it lasts. Use as a context manager."""

    def __init__(self, jobs: JobStore, record: JobRecord, draining: Callable[[], bool] = lambda: False) -> None:
        self.jobs = jobs
        self.job_id = record.id
        self.token = record.token
        self.hang_up: Callable[[], None] = lambda: None
        """Ends calls that wait, from another thread, every second once the work is to end."""
        self._draining = draining
        self._state = record.state
        self._lost = False
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
        self.jobs.release(self.job_id, self.token)

    def reason(self) -> Exception | None:
        """Why the work has to end, the strongest of several; None: go on. Cheap: no network."""
        if self._lost:
            return StaleToken(self.job_id)
        if (asked := ASKED.get(self._state)) is not None:
            return asked(self.job_id)
        return Draining(self.job_id) if self._draining() else None

    def go_on(self) -> None:
        """Return while the job is ours and wanted; raise the reason otherwise."""
        if (reason := self.reason()) is not None:
            raise reason

    def look(self) -> None:
        """Like `go_on`, but ask Redis now: what was asked may be younger than the last look."""
        self._state = self.jobs.get(self.job_id).state
        self.go_on()

    def confirm(self) -> None:
        """Before a write that matters: StaleToken unless Redis says that the job is ours, Cancelled when unwanted.

        Work that is done is kept, also when the job is to wait or to move on to another worker.
        """
        if isinstance(reason := self.reason(), StaleToken | Cancelled):
            raise reason
        self.check()

    def check(self) -> None:
        """StaleToken unless Redis says that our token is still the newest."""
        self.jobs.check(self.job_id, self.token)

    def _renew(self) -> None:
        """Renew four times per lease, look for what is asked every second or oftener."""
        pause = min(1.0, self.jobs.lease_s / 4)
        rounds_per_renewal = max(1, int(self.jobs.lease_s / 4 / pause))
        count = 0
        while not self._done.wait(pause):
            count += 1
            try:
                if count % rounds_per_renewal == 0:
                    self.jobs.renew(self.job_id, self.token)
                self._state = self.jobs.get(self.job_id).state
            except StaleToken:
                self._lost = True
            except RedisError:
                log.warning("Redis does not answer; the lease of %s waits", self.job_id)
            if self.reason() is not None:
                self.hang_up()
            if self._lost:
                return
