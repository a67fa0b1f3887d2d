"""Dataset snapshots: JSONL files named by their sha256, so that a version's manifest says exactly what it saw.

Rows stream to the disk; no snapshot is ever held in memory. What makes the operator's rows usable is the business of
`vcllm.data`; this module says which checks hold in a pipeline, and remembers what came of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vcllm.contracts.base import digest
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Contamination as Policy
from vcllm.contracts.recipes import DataSource
from vcllm.data.contamination import Contamination
from vcllm.data.intake import Checks, Intake, refuse_unusable, summary
from vcllm.data.lengths import estimated_tokens
from vcllm.data.mixture import mixed
from vcllm.data.reading import read_set
from vcllm.data.spool import Spool
from vcllm.stores.models import fsync, translate_full_disk

Row = dict[str, Any]
T = TypeVar("T")
CHUNK_BYTES = 2**20


class Datasets:
    """Snapshots below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def freeze(self, rows: Iterable[Row]) -> str:
        """Write the rows once, as they come; their sha256."""
        return write_stream(self.folder, lines(rows), self.path)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def chunks(self, name: str) -> Iterator[bytes]:
        """A snapshot's content, piece by piece."""
        with self.path(name).open("rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                yield chunk


@dataclass(frozen=True)
class OperatorData:
    """The operator's data folder, and what its rows are held to in one pipeline."""

    folder: Path
    datasets: Datasets
    charter: str
    """Hash that approved pairs in the data must have been made under."""
    evaluated: Contamination
    policy: Policy
    seed: int
    go_on: Callable[[], None] = lambda: None
    """Called for each row; raises when the work is not wanted any more."""

    def freeze(self, sources: Sequence[DataSource], stage: str, max_length: int) -> tuple[str, list[dict[str, Any]]]:
        """The snapshot of one pass over the sources, and the counts by set; BadRequest tells all that is wrong."""
        checks = Checks(stage, self.charter, estimated_tokens(max_length), self.evaluated, self.policy)
        intakes = [Intake(source.file, self._watched(read_set(self.path(source.file))), checks) for source in sources]
        with ExitStack() as stack, full_disk_told(self.datasets.folder):
            spools = [stack.enter_context(Spool(self.datasets.folder)) for _ in intakes]
            for spool, intake in zip(spools, intakes, strict=True):
                spool.extend(intake)
            refuse_unusable(intakes)
            rows = mixed(spools, [source.weight for source in sources], self.seed)
            name = self.datasets.freeze(self._watched(rows))
        return name, summary(intakes)

    def path(self, name: str) -> Path:
        """A file or folder of the operator's; BadRequest when it is not there, or not below the data folder."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.exists():
            raise BadRequest(f"There is no data '{name}' in {self.folder}. Put it there or correct the recipe.")
        return path

    def _watched(self, rows: Iterable[T]) -> Iterator[T]:
        for row in rows:
            self.go_on()
            yield row

    def fingerprint(self, sources: Sequence[DataSource], stage: str, max_length: int) -> str:
        """Changes with anything that could change the snapshot; the files' content is told by size and time."""
        files = [file for source in sources for file in _files_of(self.path(source.file))]
        stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        asked = sorted(zip(self.evaluated.ids, self.evaluated.texts, strict=True))
        wanted = [[source.model_dump(mode="json") for source in sources], stage, max_length]
        return digest([wanted, stamps, self.charter, asked, self.policy, self.seed])


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """Rows as JSONL, one after the other."""
    return (json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n" for row in rows)


def write_stream(folder: Path, chunks: Iterable[bytes], place: Callable[[str], Path]) -> str:
    """Write beside while hashing, fsync, rename to the place that the sha256 gives; returns the sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    hashed = hashlib.sha256()
    try:
        with full_disk_told(folder), temporary.open("xb") as handle:
            for chunk in chunks:
                hashed.update(chunk)
                handle.write(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, place(hashed.hexdigest()))
        fsync(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return hashed.hexdigest()


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """A full disk is an error of its own, which says what to do."""
    try:
        yield
    except OSError as error:
        raise translate_full_disk(error, folder) from error
