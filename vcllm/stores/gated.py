"""Redis for a server whose own clients wait: for its answer a moment only, and not at all once it is known to be away.

A Redis that hangs is worse than one that is gone: each command then costs its whole timeout, and those who wait for a
lock, a thread or a turn pay for everybody before them. So somebody looks twice a second, and while Redis is away every
command fails at once. Knows nothing of what the commands are for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis import ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from vcllm.stores.connect import connection_options, open_redis

ANSWER_S = 2.5
"""The longest wait for one answer."""
LOOK_EVERY_S = 0.5
LOOK_S = 1.5
"""The longest wait for the answer to a look. A Redis that hangs is known to be away after 2 s, so before the first
command has waited in vain: those behind it need not try."""


class RedisGate:
    """The clients of one server, and what is known of it."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.fault: str | None = None
        """Why nothing is asked at the moment; None: it answers."""
        self._answered_at = float("-inf")
        self.redis = Redis.from_pool(_GatedPool.from_url(url, **connection_options(patience=1, answer_s=ANSWER_S)))
        """For any thread. While there is a fault, its commands fail at once with a ConnectionError of Redis' own."""
        pool = self.redis.connection_pool
        assert isinstance(pool, _GatedPool), "it was made so"
        pool.fault = lambda: self.fault
        self._looking = open_redis(url, patience=0, answer_s=LOOK_S)

    def look(self) -> None:
        """Find out whether it answers; takes as long as an answer may take."""
        try:
            self._looking.ping()
            self.fault, self._answered_at = None, self._clock()
        except (RedisError, OSError) as error:
            self.fault = f"Redis does not answer: {type(error).__name__}."

    def away_for(self, seconds: float) -> bool:
        """Whether nothing was heard of it for so long, or never."""
        return self.fault is not None and self._clock() - self._answered_at > seconds

    def close(self) -> None:
        self.redis.close()
        self._looking.close()


class _GatedPool(ConnectionPool):
    """Gives out no connection while there is a fault, and every command needs one."""

    fault: Callable[[], str | None] = staticmethod(lambda: None)

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        if fault := self.fault():
            raise RedisConnectionError(fault)
        return super().get_connection(*arguments, **options)
