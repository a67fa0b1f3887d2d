"""Where the audit log ends, said outside of Redis every minute: in the gateway's own log, and in a copy on disk.

A later change of the log then shows, also one by somebody who may write to Redis.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from vcllm.contracts.audit import EMPTY
from vcllm.contracts.problems import Problem
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_copy import extend_copy

log = logging.getLogger(__name__)

EVERY_S = 60.0
CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


class AnchorKeeper:
    """For one gateway; several may keep one copy."""

    def __init__(self, store: AuditLog, copy: Path) -> None:
        self.store = store
        self.copy = copy
        self._noted = EMPTY
        self._copies = True
        """False: the folder is not ours to write to, as in a container; the anchors in the log remain."""

    async def keep(self) -> None:
        """Until it is cancelled."""
        thread = CapacityLimiter(1)
        while True:
            await asyncio.sleep(EVERY_S)
            await to_thread.run_sync(self.note, limiter=thread)

    def note(self) -> None:
        """Once, where there is something new; what keeps it from being done is logged."""
        try:
            head = self.store.head()
            if head == self._noted:
                return
            log.info("Audit anchor %s", head)
            if self._copies:
                extend_copy(self.store, self.copy)
            self._noted = head
        except OSError as error:
            self._copies = error.errno not in CANNOT_WRITE
            log.warning("The audit log is not copied to %s: %s.", self.copy, error.strerror or type(error).__name__)
        except RedisError as error:
            log.warning("The audit log cannot be read: %s.", type(error).__name__)
        except Problem as problem:
            log.error("%s", problem.message)
