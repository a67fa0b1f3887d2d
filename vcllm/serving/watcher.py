"""Follows the alias `current` of a role: loads what it names, proves it, switches; never back to nothing.

While Redis cannot be reached, what is loaded stays; so it does when the version named fails its checks, takes too
long to load, or has to wait for memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, Protocol

from redis.exceptions import RedisError

from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Overloaded, Unavailable
from vcllm.contracts.servers import ServerReport
from vcllm.serving.pool import NOT_PROMOTED, Load, NoRoom, VersionPool

log = logging.getLogger(__name__)

UNREACHABLE = "Redis cannot be reached, so it is not known which version is current."
RETRY_REFUSED_S = 30.0
"""A refused version is tried again after this: the cause may have been passing, such as a full memory."""
RETRY_UNAVAILABLE_S = 2.0
"""After this a version is tried again whose upstream does not answer: it may be starting."""
REPORT_EVERY_S = 5.0
"""What this server serves is told this often, and whenever it changes."""


@dataclass
class Pending:
    """A version that was named and is not current yet."""

    version: str
    since: float
    reason: str | None = None
    """Why not; None: it is being loaded."""
    refused: bool = False
    """Whether `reason` is a verdict on it; otherwise it waits, for memory or for an upstream to answer."""
    retry_at: float = 0.0
    load: Load | None = None
    """The one whose outcome is awaited. It may end between two polls, so it is kept until that has been seen."""

    @property
    def tried(self) -> bool:
        """Whether a load has failed, for a reason other than that there is no room yet."""
        return self.retry_at > 0


class Aliases(Protocol):
    """Says which version of a role is current; None: there is none."""

    def get(self, role: Role) -> str | None: ...


class AliasWatcher:
    """A thread that keeps a pool's current version what the alias says, and tells `report` how that goes."""

    def __init__(
        self,
        aliases: Aliases,
        role: Role,
        pool: VersionPool[Any],
        poll_s: float = 0.5,
        *,
        memory_wait_s: float = 300.0,
        server: str = "",
        switched: Callable[[float], None] = lambda _: None,
        report: Callable[[ServerReport], None] = lambda _: None,
    ) -> None:
        self.aliases = aliases
        self.role = role
        self.pool = pool
        self.poll_s = poll_s
        self.memory_wait_s = memory_wait_s
        self.server = server
        """How operators know this server."""
        self.report = report
        self.pending: Pending | None = None
        self.num_refused = 0
        self.switched = switched
        """Told the seconds from a version being named to its being current."""
        self.reachable = True
        """Whether Redis answered last time."""
        self.looked = False
        """Whether it is known what can be served: nothing, or what has been loaded, refused, or not got at."""
        self._reported: ServerReport | None = None
        self._report_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role}-aliases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def missing(self) -> str | None:
        """Why the role cannot serve its current version; None: it can."""
        if self.pool.current is not None:
            return None
        if (pending := self.pending) is not None:
            return pending.reason or f"Version '{pending.version}' is being loaded."
        return NOT_PROMOTED if self.reachable else UNREACHABLE

    def look(self) -> None:
        """One poll; the alias is read again after a load, since it may have moved on meanwhile."""
        while (named := self._named()) is not None and self._approach(named):
            pass
        self.looked = self.looked or (self.reachable and (self.pending is None or self.pending.tried))
        self.pool.trim()
        self._tell()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("Looking after the current %s version failed; trying again.", self.role)
            if self._stop.wait(self.poll_s):
                return

    def _named(self) -> str | None:
        """What the alias says; None: nothing, or nobody knows."""
        try:
            named = self.aliases.get(self.role)
        except RedisError as error:
            if self.reachable:
                log.warning("Redis cannot be reached; %s stays current. %s", self.pool.current or "nothing", error)
            self.reachable = False
            return None
        self.reachable = True
        return named

    def _approach(self, named: str) -> bool:
        """One step towards serving it. True: it has just been loaded."""
        if named == self.pool.current:
            self.pending = None
            return False
        if self.pending is None or self.pending.version != named:
            self.pending = Pending(named, since=time.monotonic())
        if time.monotonic() < self.pending.retry_at:
            return False
        if self.pool.switch(named):
            self._switched(self.pending)
            return False
        return self._loaded(self.pending)

    def _loaded(self, pending: Pending) -> bool:
        """Wait a moment for its load; what comes of it."""
        load = pending.load = pending.load or self.pool.begin(pending.version)
        if not wait([load.ended], self.poll_s).done and not load.overdue:
            return False
        pending.load = None
        try:
            load.ended.result(0)
        except TimeoutError:
            self._refuse(pending, load.too_long)
        except NoRoom as full:
            self._wait_for_room(pending, str(full))
        except (Overloaded, Unavailable) as busy:
            self._wait(pending, busy.message)
            pending.retry_at = time.monotonic() + RETRY_UNAVAILABLE_S
        except Exception as error:
            self._refuse(pending, str(error))
        else:
            return True
        return False

    def _switched(self, pending: Pending) -> None:
        took = time.monotonic() - pending.since
        self.switched(took)
        self.pending = None
        log.info("The current %s version is now %s, %.1f s after it was named.", self.role, pending.version, took)

    def _wait_for_room(self, pending: Pending, reason: str) -> None:
        """But not for ever; what is current serves on."""
        if pending.refused or time.monotonic() - pending.since > self.memory_wait_s:
            self._refuse(pending, reason)
        else:
            self._wait(pending, reason)

    def _wait(self, pending: Pending, reason: str) -> None:
        if pending.reason is None or pending.refused:
            log.warning("Version %s has to wait: %s", pending.version, reason)
        pending.reason, pending.refused = reason, False

    def _refuse(self, pending: Pending, reason: str) -> None:
        self.num_refused += 1
        pending.reason, pending.refused = reason, True
        pending.retry_at = time.monotonic() + RETRY_REFUSED_S
        log.error("Version %s was named current but is refused: %s", pending.version, reason)

    def _tell(self) -> None:
        """Where operators look; no server depends on it."""
        pending = self.pending
        report = ServerReport(
            role=self.role,
            server=self.server,
            current=self.pool.current,
            checksum=next((held.checksum for held in self.pool.held if held.version == self.pool.current), None),
            pending=None if pending is None else pending.version,
            refused=pending is not None and pending.refused,
            reason=None if pending is None else pending.reason,
        )
        if not self.reachable or (report == self._reported and time.monotonic() < self._report_at):
            return
        try:
            self.report(report)
        except RedisError as error:
            log.debug("The report of this server did not arrive: %s", error)
        else:
            self._reported, self._report_at = report, time.monotonic() + REPORT_EVERY_S
