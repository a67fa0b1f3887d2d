"""A copy of the audit log in a file, one entry a line: what is in it is compared with what the log says later.

Several processes may extend one copy; each adds only what is missing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vcllm.contracts.audit import EMPTY, Anchor, AuditEntry
from vcllm.contracts.problems import Conflict
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_chain import check_chain
from vcllm.stores.models import fsync

TAIL_BYTES = 1 << 16
"""More than any entry has."""


def copy_of(home: Path) -> Path:
    """Where an installation keeps its copy."""
    return home / "audit" / "audit.jsonl"


def extend_copy(log: AuditLog, file: Path) -> Anchor:
    """Append what the file lacks; where it ends then. Half a line of an interrupted copy is written anew.

    Conflict when the log does not go on from where the file ends: one of them was changed. OSError as it comes.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        _cut_half_a_line(out)
        end = _end_of(out, file)
        _expect_same(log, end, file)
        lines = list(log.lines(end.seq))
        found = check_chain(lines, after=end)
        out.seek(0, os.SEEK_END)
        out.writelines(line + b"\n" for line in lines[: found.sound.seq - end.seq])
        out.flush()
        os.fsync(out.fileno())
    if end == EMPTY:
        fsync(file.parent)
    if found.fault is not None:
        raise Conflict(f"Entry {found.at} of the audit log is not copied: {found.fault}.")
    return found.sound


def lines_of(file: Path) -> Iterator[bytes]:
    """The entries of a copy; half a line at its end is no entry."""
    with file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield line[:-1]


def end_of_copy(file: Path) -> Anchor | None:
    """The last entry of a copy; None: there is no copy. Conflict when that cannot be read."""
    try:
        with file.open("rb") as copy:
            return _end_of(copy, file)
    except FileNotFoundError:
        return None


def _expect_same(log: AuditLog, end: Anchor, file: Path) -> None:
    """The log has to have the very entry that the file ends with."""
    if end == EMPTY:
        return
    entry = next(log.lines(end.seq - 1), None)
    if entry is None or _anchor(entry, file) != end:
        raise Conflict(
            f"The audit log does not go on from where {file} ends (entry {end.seq}): one of the two was changed or cut."
            " `vcllm audit verify` says more. Keep both."
        )


def _end_of(copy: BinaryIO, file: Path) -> Anchor:
    size = copy.seek(0, os.SEEK_END)
    copy.seek(max(0, size - TAIL_BYTES))
    whole = copy.read().rpartition(b"\n")[0]
    last = whole.rpartition(b"\n")[2]
    return _anchor(last, file) if last else EMPTY


def _anchor(line: bytes, file: Path) -> Anchor:
    try:
        entry = AuditEntry.model_validate_json(line)
    except ValueError as error:
        raise Conflict(f"The last entry of {file}, or its twin in the log, cannot be read.") from error
    return Anchor(seq=entry.seq, hash=entry.hash)


def _cut_half_a_line(copy: BinaryIO) -> None:
    size = copy.seek(0, os.SEEK_END)
    copy.seek(max(0, size - TAIL_BYTES))
    tail = copy.read()
    if tail and not tail.endswith(b"\n"):
        copy.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
