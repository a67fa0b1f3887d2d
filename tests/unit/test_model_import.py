"""`vcllm models import`: a folder becomes a version, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_cli import run
from vcllm.stores.models import ModelStore

__all__ = ["run"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "pytorch_model.bin"):
        (folder / name).write_text(name)
    (folder / "modeling.py").write_text("import os")
    return folder


def test_a_model_becomes_a_critic_version(run: Any, model: Path, tmp_path: Path):
    """Weights, tokenizer and template are there with their hashes; pickles and code stay behind."""
    result = run("models", "import", str(model), "my-judge")
    store = ModelStore(tmp_path / "var" / "models")

    assert result.output == "critic/my-judge is in the model store.\n"
    manifest = store.verify("critic", "my-judge")
    assert sorted(manifest.files) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert (manifest.format, manifest.stage, manifest.lineage) == ("full", "import", "my-judge")


def test_a_name_is_given_once(run: Any, model: Path, tmp_path: Path):
    """Rulings are kept by the judge's name, so what is behind a name never changes."""
    run("models", "import", str(model), "my-judge")
    (model / "config.json").write_text("another")
    result = run("models", "import", str(model), "my-judge")

    assert result.exit_code == 1
    assert "versions never change" in result.output
    assert (tmp_path / "var/models/critic/my-judge/config.json").read_text() == "config.json"


@pytest.mark.parametrize(
    ("missing", "words", "said"),
    [
        ("config.json", ("my-judge",), "no whole model"),
        ("model.safetensors", ("my-judge",), "no whole model"),
        ("", ("My Judge",), "not a version name"),
        ("", ("my-judge", "--role", "actor"), "Actors come from a recipe's base"),
    ],
)
def test_what_cannot_be_a_version_leaves_nothing(
    run: Any, model: Path, tmp_path: Path, missing: str, words: tuple[str, ...], said: str
):
    """No version, and no half of one."""
    if missing:
        (model / missing).unlink()
    result = run("models", "import", str(model), *words)

    assert result.exit_code == 1
    assert said in result.output
    assert not [file for file in (tmp_path / "var").rglob("*") if file.is_file()]
