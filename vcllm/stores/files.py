"""Uploaded files on disk: one folder per file, there whole or not at all.

`<root>/<id>/` holds `content.jsonl`, `file.json` (a `FileRecord`) and, for each use that was asked for, what was found
when every line was read (`check-sft.json`). A folder appears and goes by one rename; whether it may go is decided under
a lock on its record, so that whoever dies meanwhile leaves it where it is. Ids are made here; nothing that a sender
writes becomes part of a path. Does not know what is in a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from vcllm.contracts.files import FILE_ID_PATTERN, FileCheck, FileRecord, Use
from vcllm.contracts.problems import NotFound
from vcllm.stores.models import fsync, translate_full_disk, write_atomic

CONTENT = "content.jsonl"
RECORD = "file.json"
LEFT_BEHIND_S = 24 * 3600
"""A half-written upload or a half-deleted file older than this belongs to a process that is gone."""


class Incoming:
    """A file that is being received. Use as a context manager: what was not kept is gone afterwards.

    NoSpace when the disk is full.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.id = f"file-{secrets.token_hex(12)}"
        self.folder = root / f".{self.id}.part"
        self.num_bytes = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        with _full_disk_told(self.folder):
            self.folder.mkdir(parents=True)
            self._handle = (self.folder / CONTENT).open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.num_bytes += len(chunk)
        with _full_disk_told(self.folder):
            self._handle.write(chunk)

    def content(self) -> Path:
        """Where all that was written so far can be read."""
        with _full_disk_told(self.folder):
            self._handle.flush()
        return self.folder / CONTENT

    def keep(self, filename: str, owner: str, check: FileCheck | None = None) -> FileRecord:
        """Make it a file of the store: all of it reaches the disk, then the folder gets its name."""
        record = FileRecord(
            id=self.id,
            filename=filename,
            num_bytes=self.num_bytes,
            sha256=self._hash.hexdigest(),
            created=time.time(),
            owner=owner,
        )
        with _full_disk_told(self.folder):
            self._handle.flush()
            os.fsync(self._handle.fileno())
            if check is not None:
                _write_check(self.folder, check)
            write_atomic(self.folder / RECORD, record.model_dump_json().encode())
            os.rename(self.folder, self.root / self.id)
            fsync(self.root)
        return record


class FileStore:
    """Files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def receive(self) -> Incoming:
        """A new file, to be written and kept."""
        self._clear_left_behind()
        return Incoming(self.root)

    def folder(self, file_id: str) -> Path:
        """Where a file is; NotFound where there is none of this id, whatever the id looks like."""
        folder = self.root / file_id if re.fullmatch(FILE_ID_PATTERN, file_id) else None
        if folder is None or not (folder / RECORD).is_file():
            raise NotFound(f"There is no file '{file_id[:60]}'. `GET /v1/files` lists those that exist.")
        return folder

    def get(self, file_id: str) -> FileRecord:
        return FileRecord.model_validate_json((self.folder(file_id) / RECORD).read_bytes())

    def content(self, file_id: str) -> Path:
        return self.folder(file_id) / CONTENT

    def all(self) -> list[FileRecord]:
        """Newest first."""
        found = []
        for file in self.root.glob(f"file-*/{RECORD}"):
            try:
                found.append(FileRecord.model_validate_json(file.read_bytes()))
            except (OSError, ValidationError):
                continue  # deleted while we looked
        return sorted(found, key=lambda record: (record.created, record.id), reverse=True)

    def check(self, file_id: str, use: Use) -> FileCheck | None:
        """What was found for a use; None: nobody has looked yet."""
        try:
            return FileCheck.model_validate_json((self.folder(file_id) / _check_name(use)).read_bytes())
        except FileNotFoundError:
            return None

    def first_check(self, record: FileRecord) -> FileCheck | None:
        """That of the use the file was taken for when it came; None also when the file has gone meanwhile."""
        known = (self.root / record.id).glob("check-*.json")
        with suppress(FileNotFoundError):
            oldest = min(known, key=lambda file: file.stat().st_mtime_ns, default=None)
            return None if oldest is None else FileCheck.model_validate_json(oldest.read_bytes())
        return None

    def put_check(self, file_id: str, check: FileCheck) -> None:
        _write_check(self.folder(file_id), check)

    @contextmanager
    def deleting(self, file_id: str) -> Iterator[None]:
        """Decide in the block whether a file may go: it does when the block ends, and stays when that raises.

        It is there meanwhile, but whoever asks to `confirm` it waits. NotFound where somebody else was quicker.
        """
        gone = self.root / f".{file_id}.gone-{secrets.token_hex(4)}"
        with self._locked(file_id, fcntl.LOCK_EX) as folder:
            yield
            os.rename(folder, gone)
            fsync(self.root)
        shutil.rmtree(gone, ignore_errors=True)

    def confirm(self, file_id: str) -> None:
        """NotFound unless a file is there and nobody is deleting it.

        Said by a new user of the file that `deleting` has learned, or can learn, of: from then on it stays.
        """
        with self._locked(file_id, fcntl.LOCK_SH):
            pass

    @contextmanager
    def _locked(self, file_id: str, how: int) -> Iterator[Path]:
        """The folder of a file that was still there when the lock was ours."""
        # Open for writing, without which some network file systems give no lock to one alone.
        try:
            record = (self.folder(file_id) / RECORD).open("r+b")
        except FileNotFoundError as error:
            raise NotFound(f"There is no file '{file_id}'.") from error
        with record:
            fcntl.flock(record, how)
            yield self.folder(file_id)

    def _clear_left_behind(self) -> None:
        for folder in self.root.glob(".file-*"):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > LEFT_BEHIND_S:
                    shutil.rmtree(folder, ignore_errors=True)


def _check_name(use: Use) -> str:
    return f"check-{use}.json"


def _write_check(folder: Path, check: FileCheck) -> None:
    write_atomic(folder / _check_name(check.use), check.model_dump_json().encode())


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate_full_disk(error, path) from error
