"""The model store: a version is whole or absent, never changed, and never outside of its folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.stores.models import Damaged, ModelStore, NoSpace, hash_files, write_atomic


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def manifest(name: str, files: dict[str, str], **fields: Any) -> Manifest:
    return Manifest(
        **{
            "role": "actor",
            "name": name,
            "lineage": "line",
            "stage": "sft",
            "format": "full",
            "files": files,
            "recipe": {},
            "recipe_hash": "r",
            "charter": "c",
            "dataset": "d",
            "token": 1,
            "job": "job-1",
            "created": 1.0,
            **fields,
        }
    )


def stage(store: ModelStore, name: str, weights: bytes = b"weights", **fields: Any) -> tuple[Path, Manifest]:
    staged = store.staging("actor", name)
    (staged / "tokenizer").mkdir()
    (staged / "model.safetensors").write_bytes(weights)
    (staged / "tokenizer" / "vocab.json").write_text("{}")
    return staged, manifest(name, hash_files(staged), **fields)


def test_a_committed_version_is_whole(store: ModelStore):
    """Manifest and files are there, verified; nothing is left of the staging folder."""
    staged, written = stage(store, "v1")

    store.commit(staged, written)

    assert store.verify("actor", "v1") == written
    assert store.has("actor", "v1")
    assert [folder.name for folder in (store.root / "actor").iterdir()] == ["v1"]
    assert len(store.checksum("actor", "v1")) == 64


def test_a_version_that_is_staged_is_not_there(store: ModelStore):
    """Until it is committed nobody can see it."""
    stage(store, "v1")

    assert not store.has("actor", "v1")
    assert store.manifests() == []
    with pytest.raises(NotFound):
        store.manifest("actor", "v1")


def test_a_version_is_never_changed(store: ModelStore):
    """Committing the same name again leaves the first content."""
    store.commit(*stage(store, "v1"))

    store.commit(*stage(store, "v1", weights=b"others"))

    assert (store.path("actor", "v1") / "model.safetensors").read_bytes() == b"weights"
    store.verify("actor", "v1")


def test_versions_are_listed_oldest_first(store: ModelStore):
    """By the time they were made, whatever their names."""
    for name, created in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        store.commit(*stage(store, name, created=created))

    assert [each.name for each in store.manifests("actor")] == ["b", "c", "a"]
    assert store.manifests("critic") == []


@pytest.mark.parametrize("damage", ["changed", "missing", "link"])
def test_damage_is_found(store: ModelStore, tmp_path: Path, damage: str):
    """A flipped byte, a missing file, a link that leads out."""
    store.commit(*stage(store, "v1"))
    file = store.path("actor", "v1") / "model.safetensors"
    if damage == "changed":
        file.write_bytes(b"weightz")
    else:
        file.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(b"weights")
        file.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Damaged, match=r"model\.safetensors"):
        store.verify("actor", "v1")


@pytest.mark.parametrize("name", ["..", "../v1", "/etc", "a/b", "A", "", ".hidden", "v1\n", "v" * 65, "v1\x00"])
def test_a_name_cannot_leave_the_store(store: ModelStore, name: str):
    """Refused before any path is made of it."""
    for ask in (store.path, store.has, store.manifest, store.staging, store.verify):
        with pytest.raises(BadRequest):
            ask("actor", name)


def test_a_role_is_one_of_three(store: ModelStore):
    """It is part of the path, too."""
    with pytest.raises(BadRequest):
        store.path("../actor", "v1")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "modeling.py", "state.pkl"])
def test_what_could_run_code_is_refused(store: ModelStore, file: str):
    """Only safetensors weights are accepted."""
    staged, _ = stage(store, "v1")
    (staged / file).write_bytes(b"")

    with pytest.raises(BadRequest, match="safetensors"):
        store.commit(staged, manifest("v1", hash_files(staged)))
    assert not store.has("actor", "v1")


def test_a_file_the_manifest_does_not_list_is_a_mistake(store: ModelStore):
    """Every byte of a version has a hash."""
    staged, written = stage(store, "v1")
    (staged / "extra.json").write_text("{}")

    with pytest.raises(AssertionError):
        store.commit(staged, written)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_full_disk_leaves_no_half_version(store: ModelStore, monkeypatch: pytest.MonkeyPatch, call: str):
    """The error says what to do, the versions before are untouched, and the commit can be tried again."""
    store.commit(*stage(store, "v1"))
    staged, written = stage(store, "v2")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(NoSpace, match="Free some disk space"):
            store.commit(staged, written)

    assert not store.has("actor", "v2")
    store.verify("actor", "v1")
    store.commit(staged, written)
    store.verify("actor", "v2")


def test_other_errors_of_the_disk_pass_through(store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    """Only a full disk is explained as one."""

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    staged, written = stage(store, "v1")
    monkeypatch.setattr(os, "rename", broken)

    with pytest.raises(OSError, match="Input/output"):
        store.commit(staged, written)


def test_an_atomic_write_keeps_the_old_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No half-written file, and no rest of the attempt."""
    file = tmp_path / "state.json"
    write_atomic(file, b"old")
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(NoSpace):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
