"""Follows the alias `current` of a role: loads what it names, proves it, switches; never back to nothing.

While Redis cannot be reached, what is loaded stays; so it does when the version named fails its checks.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

from redis.exceptions import RedisError

from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Problem
from vcllm.serving.pool import NOT_PROMOTED, VersionPool
from vcllm.serving.proof import Refused

log = logging.getLogger(__name__)

UNREACHABLE = "Redis cannot be reached, so it is not known which version is current."
RETRY_REFUSED_S = 30.0
"""A refused version is tried again after this: the cause may have been passing, such as a full memory."""


class Aliases(Protocol):
    """Says which version of a role is current; None: there is none."""

    def get(self, role: Role) -> str | None: ...


class AliasWatcher:
    """A thread that keeps a pool's current version what the alias says."""

    def __init__(self, aliases: Aliases, role: Role, pool: VersionPool[Any], poll_s: float = 0.5) -> None:
        self.aliases = aliases
        self.role = role
        self.pool = pool
        self.poll_s = poll_s
        self.refused: dict[str, str] = {}
        """Version to reason, for those that were named `current` and not taken."""
        self.num_refused = 0
        self.reachable = True
        """Whether Redis answered last time."""
        self._retry_at = 0.0
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
        if self.refused:
            return next(reversed(self.refused.values()))
        return NOT_PROMOTED if self.reachable else UNREACHABLE

    def look(self) -> None:
        """One poll."""
        try:
            named = self.aliases.get(self.role)
        except RedisError as error:
            self._lost(error)
            return
        self.reachable = True
        if named is not None and named != self.pool.current and not self._too_soon(named):
            self._switch(named)
        self.pool.trim()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("Looking after the current %s version failed; trying again.", self.role)
            if self._stop.wait(self.poll_s):
                return

    def _lost(self, error: RedisError) -> None:
        if self.reachable:
            log.warning("Redis cannot be reached; %s stays current. %s", self.pool.current or "nothing", error)
        self.reachable = False

    def _too_soon(self, version: str) -> bool:
        return version in self.refused and time.monotonic() < self._retry_at

    def _switch(self, version: str) -> None:
        before = self.pool.current
        try:
            self.pool.promote(version)
        except (Refused, Problem) as error:
            self._refuse(version, str(error))
        else:
            self.refused.clear()
            log.info("The current %s version is now %s; before: %s.", self.role, version, before or "none")

    def _refuse(self, version: str, reason: str) -> None:
        self.num_refused += 1
        self.refused[version] = reason
        self._retry_at = time.monotonic() + RETRY_REFUSED_S
        log.error("Version %s was named current but is refused: %s", version, reason)
