"""Reads every line of an uploaded file and says what is wrong with it, in a process of its own.

    python -m gateway.fine_tuning.checking sft FILE

A file of 100 MB keeps a processor busy for many seconds, and may hold lines that take a lot of memory to parse. In the
gateway's own process both would be felt by everybody who chats. What rows must look like is the business of
`vcllm.data`; whether they quote the evaluation is found out by the trainer, which knows what is asked there.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from vcllm.contracts.files import MAX_FAULTS, FileCheck, RowFault, Use
from vcllm.contracts.problems import BadRequest, Overloaded, Unavailable
from vcllm.data.faults import Fault
from vcllm.data.intake import Checks, Intake
from vcllm.data.jsonl import read_jsonl
from vcllm.data.lengths import estimate
from vcllm.data.shapes import normalise, texts_of

LONGEST_S = 600.0
SAY_SO_EVERY_S = 5.0
MOST_MEMORY = 2 << 30
"""Bytes of address space; one line of the longest kind takes a fraction of it."""
MOST_AT_ONCE = 8
"""Of checks: one runs, the others wait. Each keeps a thread, of which all routes together have forty."""
RETRY_AFTER_S = 30.0
"""About as long as the check of a large file takes."""
LOOKED_AT = 100
"""Lines among which the first sound one says what a file is for."""


class Checker:
    """Runs checks, one at a time; a few others wait for their turn, more are refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_asked = 0
        self._turn = threading.Lock()

    def refuse_full(self) -> None:
        """Overloaded when as many checks run and wait as may."""
        if self._num_asked >= MOST_AT_ONCE:
            raise Overloaded(
                f"{MOST_AT_ONCE} file checks run or wait here already. Try again in half a minute.",
                retry_after_s=RETRY_AFTER_S,
            )

    @contextmanager
    def turn(self, say_so: Callable[[], None] = lambda: None) -> Iterator[Turn]:
        """Wait until nobody else checks; Overloaded at once when too many wait already.

        say_so: called every few seconds while it lasts.
        """
        with self._place():
            while not self._turn.acquire(timeout=SAY_SO_EVERY_S):
                say_so()
            try:
                yield Turn(say_so)
            finally:
                self._turn.release()

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self._lock:
            self.refuse_full()
            self._num_asked += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_asked -= 1


@dataclass(frozen=True)
class Turn:
    """The right to check."""

    say_so: Callable[[], None]

    def check(self, file: Path, use: Use | None) -> FileCheck:
        """use: None: what the first sound row suggests.

        BadRequest for a file that cannot be checked at all, Unavailable when that takes too long.
        """
        command = [sys.executable, "-m", "gateway.fine_tuning.checking", use or "any", str(file)]
        # It needs nothing of what the gateway is told, secrets least of all.
        around = {name: value for name, value in os.environ.items() if not name.startswith(("VCLLM_", "GATEWAY_"))}
        deadline = time.monotonic() + LONGEST_S
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=around) as process:
            try:
                while True:
                    try:
                        said, _ = process.communicate(timeout=SAY_SO_EVERY_S)
                        break
                    except subprocess.TimeoutExpired:
                        self.say_so()
                        if time.monotonic() > deadline:
                            raise Unavailable(f"The file was not checked within {LONGEST_S:.0f} s. Split it.") from None
            finally:
                process.kill()
        if process.returncode != 0:
            raise BadRequest("The file could not be checked: a line of it takes too much memory. Split it.")
        return FileCheck.model_validate_json(said)


def check_file(file: Path, use: Use) -> FileCheck:
    """Rows stream through; what is kept of each is a hash."""
    intake = Intake(file.name, read_jsonl(file), Checks(stage=use, max_shown=MAX_FAULTS))
    num_tokens = sum(estimate("\n".join(texts_of(row))) for row in intake)
    counts = intake.counts
    return FileCheck(
        use=use,
        num_rows=counts.rows,
        num_usable=counts.usable,
        num_empty=counts.empty,
        num_duplicates=counts.duplicates,
        num_tokens=round(num_tokens),
        ignored=sorted(intake.ignored),
        num_faults=intake.faults.total,
        faults=[_as_fault(fault) for fault in intake.faults.shown],
    )


def likely_use(file: Path) -> Use:
    """What the first sound row is for; instruction data where there is none."""
    for found in islice(read_jsonl(file), LOOKED_AT):
        if found.fault is None and (kind := normalise(found.value).kind) is not None:
            return "preference" if kind == "preference" else "sft"
    return "sft"


def _as_fault(fault: Fault) -> RowFault:
    number = fault.where.removeprefix("line ")
    line = int(number) if number.isdecimal() else None
    return RowFault(line=line, pointer=fault.pointer, code=fault.code, message=fault.reason)


def main(words: list[str]) -> int:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    asked, file = words[0], Path(words[1])
    uses: dict[str, Use] = {name: name for name in get_args(Use)}
    check = check_file(file, uses.get(asked) or likely_use(file))
    print(json.dumps(check.model_dump()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
