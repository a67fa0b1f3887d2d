"""How the main process of a Celery worker tells its pool processes that it is about to end.

On SIGTERM Celery lets tasks run to their end, for hours if need be, and tells them nothing. (Its soft shutdown, with
REMAP_SIGTERM=SIGQUIT, only puts a limit to that waiting.) So the main process sets a byte that all pool processes see,
and each of them brings its job to a checkpoint and gives it back.
"""

from __future__ import annotations

import mmap


class Drain:
    """A flag in memory that is shared with processes forked later. No lock: one that is killed cannot leave it shut."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def begin(self) -> None:
        """Safe in a signal handler."""
        self._byte[0] = 1

    def __call__(self) -> bool:
        return self._byte[0] == 1
