"""One launcher at a time on a folder, and an ending that nothing interrupts."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcllm.launch.errors import LaunchError

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def only_launcher(home: Path) -> Iterator[None]:
    """Hold the folder for this process; the kernel gives it free when the process ends, however it ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LaunchError(
                f"Another VC-LLM is running on {home} (process {lock.read().strip() or 'unknown'}). Stop it"
                " first, or give this one a folder of its own with VCLLM_HOME."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait outside: ending is bounded anyway, and half an ending would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def put_aside(logs: Path) -> None:
    """Logs of this start only; those of the one before are kept beside them."""
    previous = logs.with_name("log.previous")
    if logs.exists():
        shutil.rmtree(previous, ignore_errors=True)
        logs.rename(previous)
