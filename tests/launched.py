"""A launcher of the tiny fleet in a process of its own, and an eye on everything it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.processes import command_line
from vcllm.launch.ports import free_port

FAKE_FLEET = Path(__file__).parent / "fake_fleet.py"
LONG_S = 30.0


class Launched:
    """A launcher in a process of its own."""

    def __init__(self, home: Path, port: int, extra: list[str], settings: dict[str, str]) -> None:
        self.home = home
        self.port = port
        self.output = home.parent / f"{home.name}-{port}.out"
        # Other services of this machine may be named in our environment.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("VCLLM_")}
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(FAKE_FLEET), "launch", str(port), *extra],
                env={**outside, "VCLLM_HOME": str(home), **settings},
                stdout=out,
                stderr=out,
            )
        self.seen: dict[int, psutil.Process] = {}

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, word: str) -> None:
        until = time.monotonic() + LONG_S
        while word not in self.said.split():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.05)
        self.note_processes()

    def note_processes(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= {process.pid: process for process in found}
        return found

    def wait(self) -> int:
        return self.process.wait(LONG_S)

    def addresses(self) -> dict[str, str]:
        return dict(json.loads((self.home / "run" / "fleet.json").read_text()))

    def named(self, word: str) -> psutil.Process:
        return next(process for process in self.note_processes() if any(word in part for part in command_line(process)))

    def left_after(self, seconds: float) -> list[psutil.Process]:
        """Processes of the fleet that are still there `seconds` from now."""
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=seconds)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def launched(home: Path, *extra: str, port: int | None = None, **settings: str) -> Iterator[Launched]:
    fleet = Launched(home, port or free_port(), list(extra), settings)
    try:
        yield fleet
    finally:
        for process in [*fleet.seen.values(), psutil.Process()]:
            if process.pid != os.getpid() and process.is_running():
                process.kill()
        fleet.process.kill()
        fleet.process.wait()
