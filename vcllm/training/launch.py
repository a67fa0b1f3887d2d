"""One run as several processes: torch's launcher, or `accelerate`'s where a configuration asks for more than DDP.

The launchers end with 1 whatever became of their processes. A supervisor must tell a stop from a fault, so what comes
back here is the exit code of the process that ended first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from vcllm.contracts.runs import STOPPED

PROCESS = ["-m", "vcllm.training"]
PR_SET_PDEATHSIG = 1


def launch(processes: int, config: Path | None, arguments: list[str]) -> int:
    """Run `python -m vcllm.training ARGUMENTS` in so many processes; their exit code, negative for a signal.

    config: an `accelerate` configuration; None: one machine, DDP.
    """
    try:
        if config is None:
            run(get_args_parser().parse_args(["--standalone", f"--nproc-per-node={processes}", *PROCESS, *arguments]))
        else:
            options = ["--config_file", str(config), "--num_processes", str(processes)]
            launch_command(launch_command_parser().parse_args([*options, *PROCESS, *arguments]))
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except SignalException:  # passed on to the processes, which had time for a checkpoint
        return STOPPED
    return 0


def end_as(code: int) -> int:
    """End this process as another ended: by the same signal, if it was one."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


def die_with_launcher() -> None:
    """Processes that a launcher started have sessions of their own: no kill of the launcher's group finds them."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it was gone before we could ask
            os.kill(os.getpid(), signal.SIGKILL)
