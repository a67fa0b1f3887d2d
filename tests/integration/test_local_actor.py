"""A model in a folder is asked over HTTP by the server that would serve it, and nothing runs afterwards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest

from vcllm.launch.errors import LaunchError
from vcllm.launch.local_actor import LocalActor

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(family_folder, tmp_path: Path) -> Path:
    """A tiny model under a name that is no version's name."""
    return Path(shutil.copytree(family_folder("qwen3"), tmp_path / "My Model"))


def test_a_folder_is_served_under_its_name_and_ends_with_its_context(folder: Path):
    """Chat works without Redis and without a version store."""
    with LocalActor(folder) as actor:
        headers = {"Authorization": f"Bearer {actor.key.get_secret_value()}"}
        body = {"model": actor.model, "messages": [{"role": "user", "content": "Who may speak?"}], "max_tokens": 4}
        reply = httpx.post(f"{actor.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        pid = actor._process.pid

    assert reply.status_code == 200
    assert reply.headers["x-vc-version"] == actor.model == "my-model"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_folder_without_a_model_is_refused_at_once(tmp_path: Path):
    """Before anything is started."""
    with pytest.raises(LaunchError, match=r"config\.json is missing"), LocalActor(tmp_path):
        pass


def test_a_broken_model_is_refused_with_its_reason(folder: Path):
    """Weights cut short: the server says so, and is ended."""
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])

    with pytest.raises(LaunchError, match="cannot be served"), LocalActor(folder):
        pass
