"""Run a command that ends when its parent does, even if the parent is killed outright.

`python -m vcllm.launch.tether PARENT COMMAND...` asks the kernel for a SIGTERM on the parent's death, then becomes the
command; outside Linux it only becomes the command. PARENT is the parent's id as the parent itself has written it: one
that is gone before this process looks is missed otherwise. 0 stands for whoever the parent is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(parent: int, command: list[str]) -> None:
    parent = parent or os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("The process that started this one is already gone.")
    os.execvp(command[0], command)


def tethered(executable: str, *, by_other: bool = False) -> list[str]:
    """The beginning of a command line that is run so; `python` stands for this interpreter.

    by_other: it is not this process that will run it, but one that sees to what it leaves behind.
    """
    program = sys.executable if executable == "python" else executable
    return [sys.executable, "-m", "vcllm.launch.tether", "0" if by_other else str(os.getpid()), program]


def adopt_orphans() -> None:
    """From now on, descendants whose own parent dies become children of this process."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
