"""How a training run is supervised: every exit code, a stop at a checkpoint, and nothing left running."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.trainer import runlog
from services.trainer.hold import Cancelled, Draining, Paused
from services.trainer.runs import MAX_RUNS, Run, TrainingFailed, supervise
from tests.servers import wait_until
from vcllm.contracts.runs import FAULT, HOLDER, LOG, STOP
from vcllm.stores.folders import claim_folder
from vcllm.stores.jobs import StaleToken

PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def say(**progress): print(json.dumps(progress), flush=True)
(folder / "starts").open("a").write("x")
num_starts = len((folder / "starts").read_text())
"""
WAIT_FOR_STOP = """
say(step=1)
while not (folder / "stop").exists(): time.sleep(0.01)
(folder / "checkpoint").touch()
sys.exit(75)
"""


@dataclass
class FakeHold:
    """A job that is held until the test says otherwise."""

    asked: Exception | None = None
    stale: bool = False
    token: int = 5
    job_id: str = "job-1"

    def reason(self) -> Exception | None:
        return self.asked

    def go_on(self) -> None:
        if self.asked is not None:
            raise self.asked

    def check(self) -> None:
        if self.stale:
            raise StaleToken(self.job_id)


@dataclass
class Heard:
    """What was relayed; `then` is done at the first progress."""

    progress: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    then: Any = None

    def __call__(self, progress: dict[str, Any]) -> None:
        self.progress.append(progress)
        if self.then is not None:
            self.then()

    def say(self, message: str) -> None:
        self.said.append(message)


def script(folder: Path, text: str, grace_s: float = 10.0) -> Run:
    """A run whose process does what the text says."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "script.py"
    file.write_text(PRELUDE + text)
    return Run(folder, [sys.executable, "-S", str(file), str(folder)], dict(os.environ), grace_s)


def num_starts(run: Run) -> int:
    return len((run.folder / "starts").read_text())


def run_it(run: Run, hold: FakeHold | None = None, heard: Heard | None = None) -> Heard:
    heard = heard or Heard()
    supervise(run, hold or FakeHold(), heard)  # type: ignore[arg-type]
    return heard


def test_progress_is_passed_on_whatever_it_holds(tmp_path: Path):
    """Every JSON object a line, unchanged; other lines, and half of one, are nobody's."""
    text = 'say(step=1, shares={"zh": [0.5]})\nprint("hello")\nsay(new_key=None)\nprint(\'{"half": \')'

    assert run_it(script(tmp_path, text)).progress == [{"step": 1, "shares": {"zh": [0.5]}}, {"new_key": None}]


def test_a_run_that_cannot_go_on_says_why_in_its_own_words(tmp_path: Path):
    """The fault's sentence is the error, without anything around it; it is not started again."""
    text = '(folder / "fault.json").write_text(json.dumps({"message": "Row 3 has no query."}))\nsys.exit(2)'
    run = script(tmp_path, text)

    with pytest.raises(TrainingFailed) as raised:
        run_it(run)
    assert str(raised.value) == "Row 3 has no query."
    assert num_starts(run) == 1


def test_a_full_disk_fails_with_its_reason_and_goes_on_when_there_is_space(tmp_path: Path):
    """The sentence comes even where it could not be written down; started again, the run finds a clean slate."""
    sentence = "No space left to write step-9. Free some disk space and resume; nothing was lost."
    text = f'if num_starts == 1:\n  print("{sentence}", file=sys.stderr)\n  sys.exit(2)\nsay(step=9)'
    run = script(tmp_path, text)
    (tmp_path / STOP).touch()
    (tmp_path / FAULT).write_text('{"message": "of an earlier run"}')

    with pytest.raises(TrainingFailed) as raised:
        run_it(run)
    assert str(raised.value) == sentence
    assert run_it(run).progress == [{"step": 9}]


def test_any_other_end_is_told_by_the_last_lines_of_the_log(tmp_path: Path):
    """The code, the file and its last five lines."""
    run = script(tmp_path, 'for n in range(9): print("line", n, file=sys.stderr)\nsys.exit(4)')

    with pytest.raises(TrainingFailed) as raised:
        run_it(run)
    first, *lines = str(raised.value).splitlines()
    assert first == f"Training ended with exit code 4. The end of {tmp_path / LOG}:"
    assert lines == [f"    line {n}" for n in range(4, 9)]
    assert len((tmp_path / LOG).read_text().splitlines()) == 9


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One file and one before it."""
    monkeypatch.setattr(runlog, "MAX_BYTES", 100)
    run_it(script(tmp_path, 'for n in range(99): print("line", n, file=sys.stderr)'))

    assert (tmp_path / LOG).stat().st_size <= 110
    assert (tmp_path / "log.previous.txt").stat().st_size <= 110


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_killed_run_is_started_again_a_few_times(tmp_path: Path, number: str):
    """By the kernel or by hand; then the job fails, and says that resuming goes on."""
    run = script(tmp_path, f"os.kill(os.getpid(), signal.{number})")
    heard = Heard()

    with pytest.raises(TrainingFailed, match=f"killed {MAX_RUNS} times"):
        run_it(run, heard=heard)
    assert num_starts(run) == MAX_RUNS
    assert len(heard.said) == MAX_RUNS - 1


def test_a_run_that_stopped_though_nobody_asked_carries_on(tmp_path: Path):
    """A stop file of an earlier holder, say; it is removed, and this counts as nothing."""
    run = script(tmp_path, f"if num_starts < {MAX_RUNS + 2}: sys.exit(75)")
    (tmp_path / STOP).touch()

    assert len(run_it(run).said) == MAX_RUNS + 1
    assert not (tmp_path / STOP).exists()


@pytest.mark.parametrize("reason", [Paused(), Draining()], ids=["paused", "draining"])
def test_a_run_that_is_to_wait_or_to_move_stops_at_a_checkpoint(tmp_path: Path, reason: Exception):
    """It is asked by a file, and its reason goes to the job once it has ended."""
    run, hold = script(tmp_path, WAIT_FOR_STOP), FakeHold()

    with pytest.raises(type(reason)):
        run_it(run, hold, Heard(then=lambda: setattr(hold, "asked", reason)))
    assert (tmp_path / "checkpoint").exists()


def test_a_run_that_ends_while_it_is_asked_to_stop_has_ended_well(tmp_path: Path):
    """Pausing what has just finished is harmless."""
    run, hold = script(tmp_path, "say(step=1)\ntime.sleep(0.5)"), FakeHold()

    assert run_it(run, hold, Heard(then=lambda: setattr(hold, "asked", Paused()))).progress == [{"step": 1}]


def test_a_run_that_does_not_stop_in_time_is_killed(tmp_path: Path):
    """Its older checkpoints are there; what it had started dies with it."""
    text = (
        'child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])\n'
        "say(child=child.pid)\ntime.sleep(60)"
    )
    run, hold, heard = script(tmp_path, text, grace_s=0.5), FakeHold(), Heard()
    heard.then = lambda: setattr(hold, "asked", Draining())
    started = time.monotonic()

    with pytest.raises(Draining):
        run_it(run, hold, heard)
    assert 0.5 < time.monotonic() - started < 5
    wait_until(lambda: not is_alive(heard.progress[0]["child"]))


@pytest.mark.parametrize("reason", [Cancelled(), StaleToken()], ids=["cancelled", "lost"])
def test_a_run_that_is_not_wanted_is_killed_at_once(tmp_path: Path, reason: Exception):
    """Also while it is writing the checkpoint of a pause."""
    run, hold = script(tmp_path, "say(step=1)\ntime.sleep(0.5)\nsay(step=2)\ntime.sleep(60)"), FakeHold()
    reasons = iter([Paused(), reason])
    started = time.monotonic()

    with pytest.raises(type(reason)):
        run_it(run, hold, Heard(then=lambda: setattr(hold, "asked", next(reasons))))
    assert time.monotonic() - started < 5


def test_a_folder_is_taken_over_with_the_newest_token(tmp_path: Path):
    """Before the run starts; half-written checkpoints and weights of earlier ones are gone, whole ones stay."""
    run = script(tmp_path, 'assert not list((folder / "checkpoints").glob(".*"))')
    for name in ("checkpoints/.step-2.tmp-a", "checkpoints/step-1", ".out.tmp-4"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "result.json").write_text("{}")
    claim_folder(tmp_path, 4, "job-1")

    run_it(run)
    assert json.loads((tmp_path / HOLDER).read_text())["token"] == 5
    assert (tmp_path / "checkpoints" / "step-1").is_dir()
    assert not (tmp_path / ".out.tmp-4").exists()
    assert not (tmp_path / "result.json").exists(), "a result without its files is none"


def test_a_supervisor_whose_job_was_taken_starts_nothing(tmp_path: Path):
    """The folder has a newer token: the lease was lost, or another job makes the same version."""
    run = script(tmp_path, "")
    claim_folder(tmp_path, 6, "job-2")

    with pytest.raises(StaleToken):
        run_it(run, FakeHold(stale=True))
    with pytest.raises(TrainingFailed, match="another job"):
        run_it(run, FakeHold())
    assert not (tmp_path / "starts").exists()


def test_a_run_that_lost_its_folder_ends_the_job_only_for_this_worker(tmp_path: Path):
    """Exit code 3: whoever has the job now goes on."""
    with pytest.raises(StaleToken):
        run_it(script(tmp_path, "sys.exit(3)"), FakeHold(stale=True))
    with pytest.raises(TrainingFailed, match="taken over"):
        run_it(script(tmp_path, "sys.exit(3)"), FakeHold())


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
