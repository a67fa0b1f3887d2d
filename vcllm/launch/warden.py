"""Runs supervisord and outlives it: whoever of the launcher and supervisord is killed, nothing of the fleet stays.

`python -m vcllm.launch.warden STOP_S CONFIGURATION` is told by a SIGTERM to end the fleet, which the kernel also sends
when the launcher dies (see `tether`); supervisord then ends its programs in order. When supervisord dies, the kernel
tells its programs to end, all at once, and they become this process' children. Some never get there, such as a worker
with a job whose Redis ended before it: they are killed. Knows the programs only as processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

import psutil

from vcllm.launch.tether import adopt_orphans, tethered

ORDER_S = 2.5
"""How long the fleet may take beyond its slowest program when it ends in order."""
POLL_S = 0.05


class Told(Exception):
    """Somebody wants the fleet to end."""


def main(stop_s: float, configuration: str) -> None:
    """Return once nothing that came of supervisord is left. stop_s: what its slowest program may take to end."""
    adopt_orphans()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until there is somebody to pass it on to
    signal.signal(signal.SIGTERM, _tell)
    command = [*tethered("python"), "-m", "supervisor.supervisord", "-n", "-c", configuration]
    supervisord = os.posix_spawn(command[0], command, os.environ, setsigmask=())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        status: int | None = _outlive(supervisord)
        until = time.monotonic() + stop_s
    except Told:
        until = time.monotonic() + stop_s + ORDER_S
        with suppress(ProcessLookupError):
            os.kill(supervisord, signal.SIGTERM)
        status = _await(supervisord, until)
    if status != 0:  # it did not end them itself: they were told when it died, a moment ago
        _await(None, min(until, time.monotonic() + stop_s))
    _kill_all()


def _tell(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Told


def _outlive(pid: int) -> int:
    """Reap whatever ends until that child does; its status, as of `os.wait`."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to be told
            return status


def _await(pid: int | None, until: float) -> int | None:
    """That child's status once it has ended; None: it was not to be seen before `until`, or before all had ended."""
    while time.monotonic() < until:
        ended = _reap()
        if pid in ended:
            return ended[pid]
        if not psutil.Process().children():
            return None
        time.sleep(POLL_S)
    return None


def _reap() -> dict[int | None, int]:
    """Children that have ended, with their status."""
    ended: dict[int | None, int] = {}
    with suppress(ChildProcessError):  # there are none
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def _kill_all() -> None:
    until = time.monotonic() + 5
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < until:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_S)
        _reap()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2])
