"""Several processes train what one trains: DDP and FSDP, over gloo on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training_runs import (
    LORA,
    Attempts,
    chats,
    codes,
    every_stage,
    hashes,
    micro_base,
    optim,
    order,
    preferences,
    together,
    train,
    write_job,
)
from vcllm.contracts.recipes import PreferenceStage, SftStage, StageOrder
from vcllm.contracts.runs import FAILED, STOPPED

CONFIG = Path(__file__).parent.parent / "fsdp.yaml"
STARTED_WITHIN_S = 180
"""Several interpreters import torch at once, on a machine that may be busy."""
DDP: dict[str, str] = {}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` makes of `fsdp.yaml`."""
WAYS = pytest.mark.parametrize("way", [DDP, FSDP], ids=["ddp", "fsdp"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"), num_hidden_layers=2, layer_types=["full_attention"] * 2)


@pytest.fixture(scope="module")
def attempts() -> Attempts:
    return Attempts()


def job(name: str, base: Path, **changes: Any) -> tuple[StageOrder, list[Any]]:
    made, rows = every_stage(base, max_steps=6, checkpoint_every_s=30, **changes)[name]
    still = made.lora and made.lora.model_copy(update={"dropout": 0.0})  # each process draws its own dropout
    return made.model_copy(update={"lora": still}), rows


def weights(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "out").glob("*model.safetensors")
    return load_file(file)


def furthest_apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def figures(folder: Path) -> list[dict[str, float]]:
    """Of every step, but for how long it took."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in step.items() if name != "seconds"} for step in steps]


@WAYS
@pytest.mark.parametrize("name", ["pretrain", "sft-lora", "preference", "critic"])
def test_two_processes_train_what_one_does(
    name: str, way: dict[str, str], base: Path, attempts: Attempts, tmp_path: Path
) -> None:
    """The same weights and figures as one process that takes a step whole, but for the order of sums."""
    made, rows = job(name, base)
    result = train(tmp_path / "one", made, rows)
    accumulating, _ = job(name, base, micro_tokens=48)
    two = write_job(tmp_path / "two", accumulating, rows)

    assert codes(together(attempts, two, tmp_path / "models", 2, **way)) == [0, 0], (two / "log.txt").read_text()
    assert furthest_apart(weights(two), weights(tmp_path / "one")) < 1e-5
    found = json.loads((two / "result.json").read_text())["metrics"]
    assert found["loss"] == pytest.approx(result["metrics"]["loss"], rel=1e-4)
    for one, other in zip(figures(tmp_path / "one"), figures(two), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


@WAYS
def test_a_process_without_rows_takes_part_in_the_step(
    way: dict[str, str], base: Path, attempts: Attempts, tmp_path: Path
) -> None:
    """Steps of one row leave one of three processes nothing, and the others no pairs or no singles."""
    made = order(
        PreferenceStage(optim=optim(learning_rate=3e-4, batch_tokens=32, max_steps=5, checkpoint_every_s=30)), base
    )
    rows = preferences(12)
    train(tmp_path / "one", made, rows)
    three = write_job(tmp_path / "three", made, rows)

    assert codes(together(attempts, three, tmp_path / "models", 3, **way)) == [0] * 3, (three / "log.txt").read_text()
    assert furthest_apart(weights(three), weights(tmp_path / "one")) < 1e-5


@WAYS
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_two_killed_processes_resume_to_the_same_bytes(
    lora: Any, way: dict[str, str], base: Path, attempts: Attempts, tmp_path: Path
) -> None:
    """All are killed between a checkpoint and the end; dropout of each process goes on where it was."""
    made = order(SftStage(optim=optim(max_steps=24, checkpoint_every_s=0.01, epochs=40)), base, lora)
    straight, killed = (write_job(tmp_path / name, made, chats(40)) for name in ("straight", "killed"))
    assert codes(together(attempts, straight, tmp_path / "models", 2, **way)) == [0, 0]

    processes = together(attempts, killed, tmp_path / "models", 2, **way)
    deadline = time.monotonic() + STARTED_WITHIN_S
    while not list(killed.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        process.kill()
    died = codes(processes)
    reached = max((file.name for file in killed.glob("checkpoints/step-*")), default="")

    assert died == [-signal.SIGKILL] * 2
    assert "step-00000000" < reached < "step-00000024"
    assert codes(together(attempts, killed, tmp_path / "models", 2, **way)) == [0, 0]
    assert hashes(killed / "out") == hashes(straight / "out")


def launch(folder: Path, models: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vcllm.training", "--processes", "2", *options, str(folder), str(models)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, text=True)


@pytest.mark.slow
def test_a_launched_run_ends_with_its_own_exit_code(base: Path, tmp_path: Path) -> None:
    """A stop is 75 and a fault is 2, though a launcher says 1 for both; the stopped run goes on as one process."""
    made, rows = job("sft", base)
    stopped = write_job(tmp_path / "stopped", made, rows)
    (stopped / "stop").touch()
    faulty = write_job(tmp_path / "faulty", made, [])
    both = [launch(stopped, tmp_path / "models", "--config", str(CONFIG)), launch(faulty, tmp_path / "models")]
    try:
        assert [process.wait(STARTED_WITHIN_S) for process in both] == [STOPPED, FAILED]
    finally:
        for process in both:
            process.kill()
            process.wait()

    assert "rows" in json.loads((faulty / "fault.json").read_text())["message"]
    assert [file.name for file in (stopped / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.slow
def test_the_processes_of_a_killed_launcher_die_with_it(base: Path, tmp_path: Path) -> None:
    """They have sessions of their own, where a supervisor's kill of the group does not reach."""
    made, rows = job("sft", base)
    endless = write_job(tmp_path / "endless", made.model_copy(update={"stage": endless_stage()}), rows)
    process = launch(endless, tmp_path / "models")
    deadline = time.monotonic() + STARTED_WITHIN_S
    while not (endless / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started = (endless / "metrics.jsonl").exists()
    process.kill()
    process.wait()
    time.sleep(1.0)

    alive = [int(pid.name) for pid in Path("/proc").iterdir() if pid.name.isdigit() and str(endless) in words(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)

    assert started, (endless / "log.txt").read_text()
    assert not alive


def endless_stage() -> SftStage:
    return SftStage(optim=optim(max_steps=10**6, epochs=1e6, checkpoint_every_s=0.2))


def words(pid: Path) -> str:
    try:
        return (pid / "cmdline").read_text()
    except OSError:
        return ""
