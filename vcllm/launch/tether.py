"""Run a command that ends when its parent does, even if the parent is killed outright.

`python -m vcllm.launch.tether COMMAND...` asks the kernel for a SIGTERM on the parent's death, then becomes
the command. Outside Linux it only becomes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> None:
    parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("The process that started this one is already gone.")
    os.execvp(command[0], command)


def tethered(executable: str) -> list[str]:
    """The beginning of a command line that is run so; `python` stands for this interpreter."""
    return [sys.executable, "-m", "vcllm.launch.tether", sys.executable if executable == "python" else executable]


def adopt_orphans() -> None:
    """From now on, descendants whose own parent dies become children of this process."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
