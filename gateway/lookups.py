"""Values looked up in Redis off the event loop and kept for a while; a slow Redis delays nobody who is known.

Within `ttl_s` a value is used as it is. After that it is looked up again while the old one still serves those
who cannot wait; when Redis does not answer, the old one serves for up to `grace_s`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from vcllm.contracts.problems import Unavailable

T = TypeVar("T")

MAX_KEPT = 10_000
SHORT_WAIT_S = 0.02
"""How long a refresh may take before the old value is used; Redis usually needs a fraction of it."""
LONG_WAIT_S = 5.0
"""How long somebody unknown waits."""
THREADS = 8


@dataclass(frozen=True)
class _Kept(Generic[T]):
    value: T
    when: float


class Lookups(Generic[T]):
    """A cache with one lookup at a time per name."""

    def __init__(self, ttl_s: float, grace_s: float) -> None:
        self.ttl_s = ttl_s
        self.grace_s = grace_s
        self._kept: dict[str, _Kept[T]] = {}
        self._pending: dict[str, asyncio.Task[T]] = {}
        self._num_forgotten = 0
        self._threads: CapacityLimiter | None = None

    async def get(self, name: str, look_up: Callable[[], T]) -> T:
        """The value of `name`. What `look_up` raises passes through and forgets it; Redis errors do not.

        Unavailable when the value is not known and Redis does not answer.
        """
        kept = self._kept.get(name)
        age_s = float("inf") if kept is None else time.monotonic() - kept.when
        if kept is not None and age_s < self.ttl_s:
            return kept.value
        waited_for = name in self._pending
        task = self._pending.get(name) or self._begin(name, look_up)
        known = kept is not None and age_s < self.grace_s
        if not (known and waited_for):
            await asyncio.wait((task,), timeout=SHORT_WAIT_S if known else LONG_WAIT_S)
        try:
            if task.done():
                return task.result()
        except (RedisError, OSError):
            pass
        if known and kept is not None:
            return kept.value
        raise Unavailable("The key store does not answer. Try again in a moment.", retry_after_s=2)

    def forget(self, matches: Callable[[T], bool]) -> None:
        """Also what a lookup that is under way will bring. May be called from any thread."""
        self._num_forgotten += 1
        self._pending = {}
        for name, kept in list(self._kept.items()):
            if matches(kept.value):
                self._kept.pop(name, None)

    def _begin(self, name: str, look_up: Callable[[], T]) -> asyncio.Task[T]:
        task = asyncio.create_task(self._refresh(name, look_up))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody may have left
        self._pending[name] = task
        return task

    async def _refresh(self, name: str, look_up: Callable[[], T]) -> T:
        self._threads = self._threads or CapacityLimiter(THREADS)
        num_forgotten = self._num_forgotten
        try:
            value = await to_thread.run_sync(look_up, limiter=self._threads)
        except (RedisError, OSError):
            raise
        except Exception:
            self._kept.pop(name, None)
            raise
        finally:
            if self._pending.get(name) is asyncio.current_task():
                del self._pending[name]
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        if num_forgotten == self._num_forgotten:  # else it may be the very value that was to be forgotten
            self._kept[name] = _Kept(value, time.monotonic())
        return value
