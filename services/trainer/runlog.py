"""What a training run writes on standard error: a file of bounded size, and its last lines at hand."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 10_000_000
"""Then the file becomes `log.previous.txt`."""
LAST_LINES = 5


class RunLog:
    """One run's standard error."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.last: deque[str] = deque(maxlen=LAST_LINES)

    def follow(self, lines: Iterable[str]) -> None:
        """Keep every line, to the end."""
        for line in lines:
            if line.strip():
                self.last.append(line.rstrip())
            with suppress(OSError):  # a full disk: the last lines are what the operator needs
                self._write(line)

    def obituary(self, code: int) -> str:
        """What to say of a run that ended with this exit code."""
        lines = "\n".join(f"    {line}" for line in self.last) or "    (it said nothing)"
        return f"Training ended with exit code {code}. The end of {self.file}:\n{lines}"

    def _write(self, line: str) -> None:
        if self.file.exists() and self.file.stat().st_size > MAX_BYTES:
            os.replace(self.file, self.file.with_name("log.previous.txt"))
        with self.file.open("a") as out:
            out.write(line)
