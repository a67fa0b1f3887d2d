"""Kill -9 from outside, of the launcher, of supervisord, or of several at once: nothing of a fleet is left."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launched import Launched, launched

SOON_S = 10.0
KILLED_AT_ONCE = """
import os
from vcllm.launch.tether import tethered
command = [*tethered("sleep"), "30"]
os.posix_spawn(command[0], command, os.environ)
os.kill(os.getpid(), 9)
"""
TOLD_AT_ONCE = """
import os, signal, sys
from vcllm.launch import warden
spawn = os.posix_spawn

def spawn_and_be_told(*args, **options):
    child = spawn(*args, **options)
    os.kill(os.getpid(), signal.SIGTERM)
    return child

os.posix_spawn = spawn_and_be_told
warden.main(1.0, sys.argv[1])
"""


def found(fleet: Launched, victim: str) -> psutil.Process:
    """victim: the launcher, or a word of a command line."""
    return psutil.Process(fleet.process.pid) if victim == "launcher" else fleet.named(victim)


@pytest.mark.parametrize(
    ("victims", "extra"),
    [
        (["launcher"], []),
        (["supervisor.supervisord"], []),
        (["launch.warden"], []),
        (["supervisor.supervisord", "launcher"], ["deaf"]),
        (["launcher", "supervisor.supervisord"], ["deaf"]),
    ],
    ids=lambda words: "+".join(words),
)
def test_whoever_is_killed_nothing_is_left(tmp_path: Path, victims: list[str], extra: list[str]) -> None:
    """Also not what ignores SIGTERM, nor a grandchild in a session of its own; Redis is left the time to end by itself.

    A worker once outlived a launcher and a supervisord that were killed together: with its Redis gone, it never got
    rid of its job.
    """
    with launched(tmp_path / "var", *extra) as fleet:
        fleet.wait_for("up")
        redis = fleet.named("redis-server")
        deaf = [fleet.named("deaf")] if extra else []
        for process in [found(fleet, victim) for victim in victims]:
            process.kill()
        begun = time.monotonic()
        psutil.wait_procs([redis], timeout=SOON_S)
        still_there = [process for process in deaf if process.is_running()]
        left = fleet.left_after(SOON_S)

        assert still_there == deaf, "Redis ended when it was told to, not when what is left was killed"
        assert left == []
        assert time.monotonic() - begun < SOON_S


def test_a_parent_that_is_gone_before_its_child_looks_is_noticed() -> None:
    """What a launcher started in the moment it was killed once ran on: its interpreter came up with another parent."""
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_ONCE], stdout=subprocess.PIPE, timeout=SOON_S)

    assert killed.returncode == -9, "and its output ended in time, so nobody holds it any more"


def test_a_warden_that_is_told_as_it_starts_ends_supervisord(tmp_path: Path) -> None:
    """The word once came before it was listened for, and nothing was awaited or killed."""
    configuration = tmp_path / "supervisord.conf"
    configuration.write_text(f"[supervisord]\nnodaemon=true\nlogfile={tmp_path}/log\npidfile={tmp_path}/pid\n")
    told = subprocess.run(
        [sys.executable, "-c", TOLD_AT_ONCE, str(configuration)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SOON_S,
    )

    assert (told.returncode, told.stdout) == (0, b"")
