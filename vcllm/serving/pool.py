"""The versions in memory: loaded when asked for, kept while used, and one of them current.

Used from the event loop (`use`) and from the alias watcher's thread (`promote`). What a loaded version is, an
engine or a classifier, is none of its business; it only closes it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from vcllm.contracts.problems import Overloaded, Unavailable
from vcllm.serving.proof import Refused

log = logging.getLogger(__name__)

NOT_PROMOTED = "No version has been promoted yet. Promote one, or name a version."


class Closable(Protocol):
    def close(self) -> None: ...


M = TypeVar("M", bound=Closable)


@dataclass(eq=False, slots=True)
class Held(Generic[M]):
    """One loaded version."""

    version: str
    model: M
    users: int = 0


class VersionPool(Generic[M]):
    """At most `max_loaded` versions; the one unused for longest makes room.

    Never the current one, and never one in use.
    """

    def __init__(self, open_version: Callable[[str], M], max_loaded: int) -> None:
        self.open_version = open_version
        self.max_loaded = max_loaded
        self.current: str | None = None
        self._held: dict[str, Held[M]] = {}
        """Least recently used first."""
        self._lock = threading.Lock()
        """Held for moments only: the event loop takes it."""
        self._loading = threading.Lock()
        """One load at a time."""
        self._loader = ThreadPoolExecutor(1, "load")
        """Of its own, so that requests waiting for a load keep no other work from its thread."""

    @property
    def held(self) -> list[Held[M]]:
        with self._lock:
            return list(self._held.values())

    @asynccontextmanager
    async def use(self, version: str | None = None) -> AsyncIterator[Held[M]]:
        """A version (None: the current one); it stays loaded until the block ends."""
        while (held := self._take(version)) is None:
            assert version is not None, "the current version is always loaded"
            await asyncio.get_running_loop().run_in_executor(self._loader, self._load_on_demand, version)
        try:
            yield held
        finally:
            self._give_back(held)

    def promote(self, version: str) -> None:
        """Load the version beside the others and make it current; a failure leaves all as it was."""
        with self._loading:
            held = self._find(version) or Held(version, self.open_version(version))
            with self._lock:
                self._held[version] = held
                self.current = version
        self.trim()

    def trim(self) -> None:
        """Unload what is over the limit and no longer used."""
        self._unload_down_to(self.max_loaded)

    def close(self) -> None:
        """Unload everything, after the load under way."""
        self._loader.shutdown(cancel_futures=True)
        with self._loading, self._lock:
            held, self._held, self.current = list(self._held.values()), {}, None
        for each in held:
            each.model.close()

    def _find(self, version: str) -> Held[M] | None:
        with self._lock:
            return self._held.get(version)

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

    def _load_on_demand(self, version: str) -> None:
        with self._loading:
            if self._find(version) is not None:
                return
            self._unload_down_to(self.max_loaded - 1)
            if len(self._held) >= self.max_loaded:
                raise Overloaded(f"All {self.max_loaded} loaded versions are in use. Try again.", retry_after_s=1)
            try:
                held = Held(version, self.open_version(version))
            except Refused as refused:
                log.error("Version %s is refused: %s", version, refused)
                message = f"Version '{version}' cannot be served: {refused}"
                raise Unavailable(message, code="version_refused") from refused
            with self._lock:
                self._held[version] = held

    def _unload_down_to(self, limit: int) -> None:
        while (held := self._evict(limit)) is not None:
            log.info("Unloading version %s.", held.version)
            held.model.close()

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
