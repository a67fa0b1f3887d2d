"""A training run as a process: started in a group of its own, watched, stopped at a checkpoint, started again.

Knows the run's folder, its exit codes and signals (`vcllm.contracts.runs`); not what is trained.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Protocol

from services.trainer.hold import Draining, Hold, Paused
from services.trainer.process import die_with_parent, kill_group
from services.trainer.runlog import RunLog
from vcllm.contracts.runs import CHECKPOINTS, FAILED, FAULT, FENCED, LOG, OUT, RESULT, STOP, STOPPED
from vcllm.stores.folders import Fenced, claim_folder

MAX_RUNS = 3
"""How often a run that is killed (by the kernel, for memory, or by hand) is started again within one job."""
LOOK_EVERY_S = 0.2


class TrainingFailed(ValueError):
    """The run cannot go on; carries the sentence for the job's record."""


class Listener(Protocol):
    """Hears what a run says."""

    def __call__(self, progress: dict[str, Any]) -> None: ...

    def say(self, message: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """What to start."""

    folder: Path
    command: list[str]
    environment: dict[str, str]
    grace_s: float
    """How long it may take to write a checkpoint when it is asked to stop."""


def supervise(run: Run, hold: Hold, relay: Listener) -> None:
    """Return once the run has its result; raise the hold's reason, or TrainingFailed when the run cannot go on."""
    killed = 0
    while True:
        hold.go_on()
        make_ready(run.folder, hold)
        log = RunLog(run.folder / LOG)
        code = run_once(run, hold, relay, log)
        if code == 0:
            return
        if code == STOPPED:
            hold.go_on()
            relay.say("The training run stopped at a checkpoint though nobody asked; it carries on.")
        elif code in (-signal.SIGKILL, -signal.SIGTERM):
            killed += 1
            hold.go_on()
            if killed == MAX_RUNS:
                raise TrainingFailed(
                    f"The training process was killed {killed} times (out of memory?); resuming it goes on."
                )
            relay.say(f"The training process was killed; run {killed + 1} of {MAX_RUNS} carries on.")
        elif code == FENCED:
            hold.check()
            raise TrainingFailed(f"{run.folder} was taken over by another job that makes the same version.")
        else:
            raise TrainingFailed((fault(run.folder, log) if code == FAILED else None) or log.obituary(code))


def make_ready(folder: Path, hold: Hold) -> None:
    """Take the folder over, and clear away what earlier runs left half done or unsaid."""
    try:
        claim_folder(folder, hold.token, hold.job_id)
    except Fenced as error:
        hold.check()
        raise TrainingFailed(f"{folder} is being used by another job that makes the same version.") from error
    for name in (STOP, FAULT):
        (folder / name).unlink(missing_ok=True)
    if not (folder / OUT).is_dir():
        (folder / RESULT).unlink(missing_ok=True)
    for half in (*folder.glob(f".{OUT}.*"), *(folder / CHECKPOINTS).glob(".*.tmp-*")):
        shutil.rmtree(half, ignore_errors=True)


def run_once(run: Run, hold: Hold, relay: Listener, log: RunLog) -> int:
    """The exit code. A run that is to pause or to move gets `grace_s` for a checkpoint; else its group is killed."""
    process = subprocess.Popen(
        run.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
        env=run.environment,
    )
    lines: Queue[dict[str, Any]] = Queue()
    readers = [
        threading.Thread(target=_read, args=(process, lines), daemon=True),
        threading.Thread(target=_keep, args=(process, log), daemon=True),
    ]
    for reader in readers:
        reader.start()
    stop_by: float | None = None
    try:
        while process.poll() is None:
            reason = hold.reason()
            if isinstance(reason, Paused | Draining) and stop_by is None:
                stop_by = time.monotonic() + run.grace_s
                with suppress(OSError):  # a full disk: then it is killed
                    (run.folder / STOP).touch()
            waits = isinstance(reason, Paused | Draining) and stop_by is not None and time.monotonic() < stop_by
            if reason is not None and not waits:
                raise reason
            with suppress(Empty):
                relay(lines.get(timeout=LOOK_EVERY_S))
    finally:
        kill_group(process)
        for reader in readers:
            reader.join(timeout=5)
    while not lines.empty():
        relay(lines.get())
    return process.returncode


def fault(folder: Path, log: RunLog) -> str | None:
    """The sentence of a run that cannot go on as it is ordered; on a full disk it could only say it."""
    try:
        return str(json.loads((folder / FAULT).read_text())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return log.last[-1] if log.last else None


def _read(process: subprocess.Popen[str], lines: Queue[dict[str, Any]]) -> None:
    """Every line that is a JSON object; half of one, from a run that was killed, is none."""
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            if line.startswith("{"):
                with suppress(ValueError):
                    lines.put(json.loads(line))


def _keep(process: subprocess.Popen[str], log: RunLog) -> None:
    assert process.stderr is not None
    with process.stderr as said:
        log.follow(said)
