"""The model store: one immutable folder per version, written whole or not at all.

`<root>/<role>/<version>/` holds safetensors, tokenizer and `manifest.json`. A version appears by one rename,
after everything below it has reached the disk. It knows nothing of what is in the weights.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from vcllm.contracts.base import NAME_PATTERN
from vcllm.contracts.manifests import ROLES, Manifest
from vcllm.contracts.problems import BadRequest, NotFound

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORBIDDEN = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"}
"""Formats that can run code when loaded."""


class Damaged(Exception):
    """A file of a version is missing or not what its manifest says."""


class NoSpace(Exception):
    """The disk is full; what was there before is untouched."""


class ModelStore:
    """Versions on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, role: str, version: str) -> Path:
        """Where a version is (or would be); BadRequest for a name that could leave the root."""
        if role not in ROLES or not re.fullmatch(NAME_PATTERN, version):
            raise BadRequest(
                f"'{role}/{version}' is not a version name. Use lower-case letters, digits, '.', '_', '-'."
            )
        return self.root / role / version

    def has(self, role: str, version: str) -> bool:
        return (self.path(role, version) / MANIFEST).is_file()

    def manifest(self, role: str, version: str) -> Manifest:
        """NotFound when there is none, Damaged when it cannot be read."""
        file = self.path(role, version) / MANIFEST
        if not file.is_file():
            raise NotFound(f"There is no {role} version '{version}'.", code="model_not_found")
        return read_manifest(file)

    def manifests(self, role: str | None = None) -> list[Manifest]:
        """Every version, oldest first; one whose manifest cannot be read is logged and left out."""
        found = []
        for name in [role] if role else ROLES:
            for file in (self.root / name).glob(f"[!.]*/{MANIFEST}"):
                try:
                    found.append(read_manifest(file))
                except Damaged as error:
                    log.warning("A version is left out of the list: %s.", error)
        return sorted(found, key=lambda manifest: manifest.created)

    def checksum(self, role: str, version: str) -> str:
        """sha256 of the manifest, which holds the hash of every file: the version's exact content."""
        return sha256_file(self.path(role, version) / MANIFEST)

    def inspect(self, role: str, version: str) -> Manifest:
        """The manifest, when the folder holds the files it lists and no others; Damaged otherwise.

        A loader opens whatever it finds in the folder, so a file that the manifest does not list is damage too.
        """
        manifest, folder = self.manifest(role, version), self.path(role, version)
        name = f"{role}/{version}"
        if (manifest.role, manifest.name) != (role, version):
            raise Damaged(f"{name}: its manifest is that of {manifest.role}/{manifest.name}")
        if not folder.resolve().is_relative_to(self.root.resolve()):
            raise Damaged(f"{name} lies outside of the model store")
        if added := unlisted(folder, manifest):
            raise Damaged(f"{name}: {', '.join(added)} is not listed in its manifest")
        for file in (MANIFEST, *manifest.files):
            if not (folder / file).resolve().is_relative_to(folder.resolve()):
                raise Damaged(f"{name}: {file} lies outside of its version")
            if not (folder / file).is_file():
                raise Damaged(f"{name}: {file} is missing")
        return manifest

    def verify(self, role: str, version: str) -> Manifest:
        """The manifest, after every file was read and compared; Damaged otherwise."""
        manifest, folder = self.inspect(role, version), self.path(role, version)
        for name, expected in manifest.files.items():
            if sha256_file(folder / name) != expected:
                raise Damaged(f"{role}/{version}: {name} does not match its manifest")
        return manifest

    def staging(self, role: str, version: str) -> Path:
        """A fresh folder beside the final place, for `commit` to rename."""
        target = self.path(role, version)
        folder = target.parent / f".{version}.tmp-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, staged: Path, manifest: Manifest, confirm: Callable[[], None] = lambda: None) -> Path:
        """Make the staged folder a version; one that is already there stays (same name, same content).

        `manifest.files` must cover every staged file; nothing that could run code is accepted.
        confirm: asked last, when all is on the disk; what it raises keeps the version from appearing.
        """
        names = {str(file.relative_to(staged)) for file in staged.rglob("*") if file.is_file()} - {MANIFEST}
        assert names == set(manifest.files), "the manifest must list every file of the version"
        unsafe = [name for name in names if Path(name).suffix in FORBIDDEN]
        if unsafe:
            raise BadRequest(f"{', '.join(unsafe)}: only safetensors weights are accepted, no pickle and no code.")
        target = self.path(manifest.role, manifest.name)
        try:
            write_atomic(staged / MANIFEST, manifest.model_dump_json(indent=1).encode())
            for name in names:
                fsync(staged / name)
            fsync(staged)
            confirm()
            if (target / MANIFEST).is_file():
                shutil.rmtree(staged)
                return target
            os.rename(staged, target)
            fsync(target.parent)
        except OSError as error:
            raise translate_full_disk(error, target) from error
        return target


def read_manifest(file: Path) -> Manifest:
    """Damaged when it is not one."""
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        where = f"{file.parent.parent.name}/{file.parent.name}"
        reason = "; ".join(each["msg"] for each in error.errors()[:1]) if isinstance(error, ValidationError) else error
        raise Damaged(f"{where}: {MANIFEST} cannot be read: {reason}") from error


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files and links that the manifest does not know; hidden ones, which no loader opens, are left out."""
    known = {MANIFEST, *manifest.files}
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path) for path in found if str(path) not in known and not path.name.startswith("."))


def hash_files(folder: Path) -> dict[str, str]:
    """Relative file name to hex sha256, for the manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def sha256_file(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(file: Path, content: bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one, never half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not by process id: in containers that share a volume the same ids come up.
    temporary = file.with_name(f".{file.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
        fsync(file.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise translate_full_disk(error, file) from error


def write_private(file: Path, content: str) -> None:
    """As `write_atomic`, for the owner's eyes only from the first byte on; the folder, where it is made, as well."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    umask = os.umask(0o077)
    try:
        write_atomic(file, content.encode())
    finally:
        os.umask(umask)


def fsync(path: Path) -> None:
    """Push a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def translate_full_disk(error: Exception, path: Path) -> Exception:
    """NoSpace where that is the cause, else the error itself. safetensors tells the number in its text only."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    number = error.errno if isinstance(error, OSError) else None
    if number in numbers or any(f"(os error {each})" in str(error) for each in numbers):
        return NoSpace(f"No space left to write {path}. Free some disk space and resume; nothing was lost.")
    return error
