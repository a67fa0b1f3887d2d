"""`vcllm eval run` as people use it: a command, two servers, a folder; killed at any moment and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from tests import bench_world as world
from tests.servers import serve
from vcllm.evaluation.files import write_lines

pytestmark = pytest.mark.slow

KILLS = 4


class Counting:
    """A scripted server that takes its time, and counts."""

    def __init__(self, endpoint: Any) -> None:
        self.transport = endpoint._client._transport
        self.num = 0
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        self.num += 1
        asked = httpx.Request("POST", "http://scripted/v1/chat/completions", content=await request.body())
        reply = self.transport.handler(asked)
        return Response(reply.content, media_type="application/json")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Counting, Counting, list[str]]]:
    """A fair and a biased model behind one judge, and the options that name them."""
    biased, judge = Counting(world.model_endpoint(world.biased_in_chinese)), Counting(world.judge_endpoint())
    fair = Counting(world.model_endpoint(world.even_handed))
    with serve(biased.app) as one, serve(fair.app) as other, serve(judge.app) as judging:
        models = ["--model", f"base={one}#scripted", "--model", f"current={other}#scripted"]
        yield fair, judge, [*models, "--judge", f"scripted={judging}#scripted", "--no-self-test"]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "known.jsonl"
    write_lines(file, world.rows(1))
    return file


def command(out: Path, rows_file: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "vcllm.cli", "eval", "run", "--out", str(out), "--suite", str(rows_file), *options]


def figures(out: Path) -> dict[str, Any]:
    report = json.loads((out / "report" / "report.json").read_text())
    return {name: report[name] for name in ("models", "comparisons", "suite_hash", "num_rows")}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(servers, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight")
    done = subprocess.run(command(out, rows_file, servers[2]), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


def test_a_run_goes_from_nothing_to_a_report(straight: Path):
    """Page, table and data; the planted fault is in the figures."""
    report = json.loads((straight / "report" / "report.json").read_text())
    base, current = report["models"]

    assert {file.name for file in (straight / "report").iterdir()} >= {"index.html", "figures.csv", "report.json"}
    assert [base["attack_success"][language]["value"] for language in ("zh", "en")] == [1, 0]
    assert current["attack_success"]["value"] == 0


def test_a_second_run_asks_nobody_and_says_the_same(servers, straight: Path, rows_file: Path):
    """Everything is there already."""
    fair, judge, options = servers
    before, told = (fair.num, judge.num), figures(straight)

    done = subprocess.run(command(straight, rows_file, options), capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    assert (fair.num, judge.num) == before
    assert figures(straight) == told


def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_figures(servers, straight, rows_file, tmp_path):
    """Kill -9 at random moments, then once to the end: no answer or verdict twice, none missing, nothing else said."""
    chance, out = random.Random(7), tmp_path / "killed"
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(out, rows_file, servers[2]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(1.5, 5.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command(out, rows_file, servers[2]), capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    assert figures(out) == figures(straight)
    for name in ("answers.jsonl", "verdicts.jsonl", "pairs.jsonl"):
        keys = [line["key"] for line in lines(out / name)]
        assert sorted(keys) == sorted({line["key"] for line in lines(straight / name)})


def test_without_a_judge_the_command_says_who_may_judge(servers, rows_file: Path, tmp_path: Path):
    """One sentence and exit status 1; the answers are kept."""
    options = [*servers[2][:4], "--url", "http://127.0.0.1:9", "--key", "k"]

    done = subprocess.run(command(tmp_path, rows_file, options), capture_output=True, text=True, timeout=120)

    assert done.returncode == 1
    assert "error:" in done.stderr and "Traceback" not in done.stderr
    assert len(lines(tmp_path / "answers.jsonl")) == 2 * len(world.rows(1))
