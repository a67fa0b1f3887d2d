"""Kill -9 from outside, of the launcher, of supervisord, or of several at once: nothing of a fleet is left."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.launched import Launched, launched

SOON_S = 10.0


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
