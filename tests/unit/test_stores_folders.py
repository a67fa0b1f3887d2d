"""A run's folder has one holder: the newest; whoever held it before finds out before it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcllm.contracts.runs import HOLDER, TOKEN_VARIABLE
from vcllm.stores.folders import Fenced, claim_folder, confirm_folder


def test_the_newest_holder_may_write(tmp_path: Path):
    """Claiming again with the same token, as every start of a run does, changes nothing."""
    claim_folder(tmp_path / "run", 7, "job-1")
    claim_folder(tmp_path / "run", 7, "job-1")

    confirm_folder(tmp_path / "run", 7)
    assert json.loads((tmp_path / "run" / HOLDER).read_text()) == {"token": 7, "job": "job-1"}


def test_an_older_holder_may_neither_write_nor_claim(tmp_path: Path):
    """Also when it is another job that makes the same version."""
    claim_folder(tmp_path, 7, "job-1")
    claim_folder(tmp_path, 9, "job-2")

    with pytest.raises(Fenced):
        confirm_folder(tmp_path, 7)
    with pytest.raises(Fenced):
        claim_folder(tmp_path, 8, "job-1")
    confirm_folder(tmp_path, 9)


def test_a_folder_that_was_emptied_is_nobodys(tmp_path: Path):
    """Another order starts anew: a run of the order before must not write into what follows."""
    claim_folder(tmp_path, 7, "job-1")
    (tmp_path / HOLDER).unlink()

    with pytest.raises(Fenced):
        confirm_folder(tmp_path, 7)


def test_a_run_knows_its_token_from_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that was started by hand has none, and is let through."""
    claim_folder(tmp_path, 7, "job-1")
    confirm_folder(tmp_path)
    monkeypatch.setenv(TOKEN_VARIABLE, "6")

    with pytest.raises(Fenced):
        confirm_folder(tmp_path)
