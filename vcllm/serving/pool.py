"""The versions in memory: loaded when asked for, kept while used, and one of them current.

Loads run in threads of their own, one at a time; the event loop (`use`) and the alias watcher (`begin`, `switch`)
only wait for them. What a loaded version is, an engine or a classifier, is none of its business; it only closes it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from vcllm.contracts.problems import Overloaded, Unavailable
from vcllm.serving.memory import reclaim
from vcllm.serving.proof import Refused

log = logging.getLogger(__name__)

NOT_PROMOTED = "No version has been promoted yet. Promote one, or name a version."
STOPPING = "The server is stopping."
CLOSING_S = 5.0
"""A load under way when the server stops may take this long to end; afterwards the process leaves it behind."""


class Closable(Protocol):
    def close(self) -> None: ...


M = TypeVar("M", bound=Closable)
Opens = TypeVar("Opens", bound=Closable, covariant=True)


class Versions(Protocol[Opens]):
    """Where versions come from."""

    def open(self, version: str) -> Opens:
        """The version in memory; Refused or a Problem when it cannot be."""
        ...

    def checksum(self, version: str) -> str: ...

    def shortage(self, version: str, *, alone: bool) -> str | None:
        """A sentence when there is not enough memory for it now. alone: nothing else is loaded."""
        ...


class NoRoom(Exception):
    """The version may be sound, but nothing more can be loaded right now."""


@dataclass(eq=False, slots=True)
class Held(Generic[M]):
    """One loaded version."""

    version: str
    model: M
    checksum: str
    users: int = 0


class Load:
    """A version on its way into memory; any number of tasks and threads wait for it."""

    def __init__(self, version: str, limit_s: float) -> None:
        self.version = version
        self.limit_s = limit_s
        self.begun: float | None = None
        """When its turn came; None: another load is under way."""
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # so that no waiter can cancel it for the others

    @property
    def overdue(self) -> bool:
        return self.begun is not None and time.monotonic() - self.begun > self.limit_s

    @property
    def too_long(self) -> str:
        return f"Version '{self.version}' is still not loaded after {self.limit_s:g} s."


class VersionPool(Generic[M]):
    """At most `max_loaded` versions; the one unused for longest makes room.

    Never the current one, and never one in use.
    """

    def __init__(self, versions: Versions[M], max_loaded: int, load_s: float = 600.0) -> None:
        self.versions = versions
        self.max_loaded = max_loaded
        self.load_s = load_s
        """A load that takes longer keeps the next one waiting no more."""
        self.current: str | None = None
        self._held: dict[str, Held[M]] = {}
        """Least recently used first."""
        self._loads: dict[str, Load] = {}
        self._running: Load | None = None
        self._closed = False
        self._lock = threading.Lock()
        """Held for moments only: the event loop takes it."""
        self._turn = threading.Condition(self._lock)
        """Told when `_running` has ended: there is one load at a time, or two would count the same memory as free."""

    @property
    def held(self) -> list[Held[M]]:
        with self._lock:
            return list(self._held.values())

    @asynccontextmanager
    async def use(self, version: str | None = None) -> AsyncIterator[Held[M]]:
        """A version (None: the current one); it stays loaded until the block ends."""
        while (held := self._take(version)) is None:
            assert version is not None, "the current version is always loaded"
            await self._load_on_demand(version)
        try:
            yield held
        finally:
            self._give_back(held)

    def begin(self, version: str, *, beside: int = 1) -> Load:
        """Load a version, or join its load; it is not made current. beside: it may be so many over the limit."""
        with self._lock:
            if self._closed:
                raise Unavailable(STOPPING)
            load = self._loads.get(version)
            if load is None:
                load = self._loads[version] = Load(version, self.load_s)
                limit = self.max_loaded + beside
                threading.Thread(target=self._run, args=(load, limit), name="load", daemon=True).start()
            return load

    def switch(self, version: str) -> bool:
        """Make it current from this moment on, if it is loaded; requests that run stay with theirs."""
        with self._lock:
            if version not in self._held:
                return False
            self.current = version
        self.trim()
        return True

    def trim(self) -> None:
        """Unload what is over the limit and no longer used; give up on a load that hangs."""
        self._unload_down_to(self.max_loaded)
        with self._turn:
            if self._running is not None and self._running.overdue:
                log.error("%s The next load waits for it no more.", self._running.too_long)
                self._running = None
                self._turn.notify_all()

    def close(self) -> None:
        """Unload everything; a load under way is waited for, but not for ever."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
            loads = [load.ended for load in self._loads.values()]
        if wait(loads, CLOSING_S).not_done:
            log.warning("A version is still being loaded; it is left behind.")
        with self._lock:
            held, self._held, self.current = list(self._held.values()), {}, None
        for each in held:
            each.model.close()

    def _take(self, version: str | None) -> Held[M] | None:
        with self._lock:
            version = version or self.current
            if version is None:
                raise Unavailable(NOT_PROMOTED, code="no_current_version", retry_after_s=5)
            held = self._held.pop(version, None)
            if held is not None:
                held.users += 1
                self._held[version] = held
            return held

    def _give_back(self, held: Held[M]) -> None:
        with self._lock:
            held.users -= 1

    async def _load_on_demand(self, version: str) -> None:
        load = self.begin(version, beside=0)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(load.ended)), self.load_s)
        except NoRoom as full:
            raise Overloaded(str(full), retry_after_s=1) from full
        except Refused as refused:
            log.error("Version %s is refused: %s", version, refused)
            message = f"Version '{version}' cannot be served: {refused}"
            raise Unavailable(message, code="version_refused") from refused
        except TimeoutError as late:
            raise Unavailable(f"{load.too_long} Ask again later.") from late

    def _run(self, load: Load, limit: int) -> None:
        """The thread of one load."""
        failure: Exception | None = None
        try:
            self._await_turn(load)
            self._make_room(load.version, limit)
            self._keep(Held(load.version, self.versions.open(load.version), self.versions.checksum(load.version)))
        except NoRoom as full:
            failure = full
        except Exception as error:
            log.debug("Version %s was not loaded.", load.version, exc_info=True)
            # Its frames hold what had been loaded so far.
            failure, error.__cause__, error.__context__ = error.with_traceback(None), None, None
            reclaim()
        self._end(load)
        if failure is None:
            load.ended.set_result(None)
        else:
            load.ended.set_exception(failure)

    def _end(self, load: Load) -> None:
        with self._turn:
            self._loads.pop(load.version)
            if self._running is load:
                self._running = None
            self._turn.notify_all()

    def _await_turn(self, load: Load) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._running is None or self._closed)
            if self._closed:
                raise Unavailable(STOPPING)
            self._running, load.begun = load, time.monotonic()

    def _keep(self, held: Held[M]) -> None:
        with self._lock:
            if not self._closed:
                self._held[held.version] = held
                return
        held.model.close()
        raise Unavailable(STOPPING)

    def _make_room(self, version: str, limit: int) -> None:
        """NoRoom when what is in use leaves none, in number or in memory."""
        self._unload_down_to(limit - 1)
        if limit <= self.max_loaded and len(self._held) >= limit:
            raise NoRoom(f"All {self.max_loaded} loaded versions are in use. Try again.")
        while (shortage := self.versions.shortage(version, alone=not self._held)) is not None:
            before = len(self._held)
            self._unload_down_to(before - 1)
            if len(self._held) >= before:
                raise NoRoom(shortage)

    def _unload_down_to(self, limit: int) -> None:
        unloaded = False
        while (held := self._evict(limit)) is not None:
            log.info("Unloading version %s.", held.version)
            held.model.close()
            unloaded = True
            del held
        if unloaded:
            reclaim()

    def _evict(self, limit: int) -> Held[M] | None:
        """Take out the least recently used idle version, if more than `limit` are loaded."""
        with self._lock:
            idle = [held for held in self._held.values() if not held.users and held.version != self.current]
            if len(self._held) <= limit or not idle:
                return None
            return self._held.pop(idle[0].version)


def resolve(name: str | None, alias: str) -> str | None:
    """The version a request means: None (the current one) for no name and for the alias."""
    return None if name is None or name == alias else name
