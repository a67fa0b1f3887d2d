"""Fixtures of the command line of `vcllm eval`: running it, questions, runs that have begun."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import bench_world as world
from tests.eval_commands import CHARTER, ROWS, Run, judge_all
from tests.tiny_bench import write_bench
from vcllm.cli import app
from vcllm.contracts.answers import AskedModel, Decoding
from vcllm.evaluation.bench import load
from vcllm.evaluation.files import write_lines
from vcllm.evaluation.generate import generate
from vcllm.evaluation.runs import RunFolder
from vcllm.evaluation.suites import Suite


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this machine's."""
    for name in ("VCLLM_API_KEY", "VCLLM_GATEWAY_URL", "VCLLM_EVAL_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `vcllm eval` on an empty home; what it says comes without line breaks of the terminal's making."""
    monkeypatch.chdir(tmp_path)
    environment = {"VCLLM_HOME": str(tmp_path / "var"), "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words: CliRunner().invoke(app, ["eval", *map(str, words)], env=environment)


@pytest.fixture
def tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set in the place of the shipped one."""
    folder = write_bench(tmp_path / "bench")
    monkeypatch.setattr(load, "SHIPPED", folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    write_lines(tmp_path / "known.jsonl", ROWS)
    return tmp_path / "known.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Two models have answered."""
    folder = RunFolder(tmp_path / "out")
    asyncio.run(_answered(folder, base=world.always_agrees, fair=world.even_handed))
    return folder


@pytest.fixture
def judged(folder: RunFolder) -> RunFolder:
    """And one judge has judged everything."""
    asyncio.run(judge_all(folder))
    return folder


async def _answered(folder: RunFolder, **models: world.Model) -> None:
    folder.begin(Suite("known", "1", tuple(ROWS)), CHARTER)
    for name, model in models.items():
        folder.note(AskedModel(name=name, url="http://h", served=name, decoding=Decoding()))
        async with world.model_endpoint(model) as server:
            await generate(ROWS, server, folder.answers_file, model=name, decoding=Decoding(), charter=CHARTER)
