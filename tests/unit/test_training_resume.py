"""What a run leaves behind when it is stopped, damaged or out of disk, and how it goes on from there."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tests.training_runs import (
    LORA,
    Attempts,
    chats,
    every_stage,
    fault,
    hashes,
    micro_base,
    optim,
    order,
    run_here,
    train,
    write_job,
)
from vcllm.contracts.recipes import Optim, SftStage
from vcllm.contracts.runs import FAILED, FENCED, STOPPED
from vcllm.stores.models import NoSpace
from vcllm.training import checkpoints as checkpoints_module
from vcllm.training.checkpoints import STATE, TENSORS, Checkpoints
from vcllm.training.parallel import Parallel
from vcllm.training.state import Average, collect, restore

STEPS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def attempts() -> Attempts:
    return Attempts()


def averaging(**changes: Any) -> Optim:
    """With all there is to remember."""
    return optim(max_steps=STEPS, ema_decay=0.7, publish="average", **changes)


def sft(base: Path, **changes: Any) -> Any:
    return order(SftStage(optim=averaging(**changes)), base, LORA)


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted run makes."""
    folder = tmp_path_factory.mktemp("straight") / "job"
    train(folder, sft(base), chats(30))
    return hashes(folder / "out")


def three_saved(folder: Path) -> Checkpoints:
    kept = Checkpoints(folder, keep=3)
    for step in (1, 2, 3):
        kept.save(step, {"x": torch.full((1000,), float(step))}, {"loss": 0.5})
    return kept


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-17] ^= 4
    file.write_bytes(content)


DAMAGES = {
    "truncated": lambda folder: truncate(folder / TENSORS),
    "one-bit": lambda folder: flip_a_bit(folder / TENSORS),
    "no-tensors": lambda folder: (folder / TENSORS).unlink(),
    "no-state": lambda folder: (folder / STATE).unlink(),
    "half-a-state": lambda folder: truncate(folder / STATE),
    "another-state": lambda folder: (folder / STATE).write_text("[]"),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says so."""
    kept = three_saved(tmp_path)
    DAMAGES[damage](tmp_path / "step-00000003")

    saved = kept.newest()

    assert saved is not None
    assert (saved.step, float(saved.tensors["x"][0])) == (2, 2.0)
    assert "Checkpoint step-00000003 is damaged; the one before is used." in caplog.text


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    """Training then starts from the beginning, which is right, if late."""
    kept = three_saved(tmp_path)
    for folder in tmp_path.iterdir():
        truncate(folder / TENSORS)

    assert kept.newest() is None


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    """A long run does not fill the disk."""
    kept = Checkpoints(tmp_path, keep=2)
    for step in (8, 9, 10, 11):
        kept.save(step, {"x": torch.zeros(3)}, {})

    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    """Half a checkpoint has a name of its own and is never read."""
    kept = three_saved(tmp_path)
    (tmp_path / ".step-00000004.tmp-0123456789ab").mkdir()

    assert kept.newest() is not None
    assert not list(tmp_path.glob(".step*"))


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that writes tensors hides the system's word in an error of its own; it is found there."""
    kept = three_saved(tmp_path)

    def full(*_: Any) -> None:
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(checkpoints_module, "save_file", full)
    with pytest.raises(NoSpace, match="Free some disk space and resume"):
        kept.save(4, {"x": torch.zeros(3)}, {})

    assert sorted(folder.name for folder in tmp_path.iterdir()) == [f"step-0000000{step}" for step in (1, 2, 3)]
    saved = kept.newest()
    assert saved is not None
    assert saved.step == 3


def test_all_random_generators_and_moments_come_back(tmp_path: Path) -> None:
    """Python's, numpy's and torch's draws go on where they were, and so do optimiser and average."""

    def trio() -> tuple[torch.nn.Module, torch.optim.Optimizer, Average]:
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 4)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True), Average(module, 0.9)

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> None:
        module(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(module)

    def draws() -> tuple[Any, ...]:
        return random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(()).item()

    parallel, kept, first, second = Parallel(), Checkpoints(tmp_path), trio(), trio()
    random.gauss(0, 1), np.random.normal()  # each keeps a second number for later
    step(*first)
    kept.save(1, collect(parallel, *first), {})
    expected = draws()
    step(*first)

    saved = kept.newest()
    assert saved is not None
    restore(saved, parallel, *second)

    assert draws() == expected
    step(*second)
    assert all(torch.equal(one, two) for one, two in zip(first[0].parameters(), second[0].parameters(), strict=True))
    assert all(torch.equal(first[2].values[name], value) for name, value in second[2].values.items())


def test_a_checkpoint_of_another_order_is_not_used(
    base: Path, tmp_path: Path, attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    """It would even be taken for newer: the folder of another learning rate's run starts from the beginning."""
    rows = chats(30)
    other = sft(base, learning_rate=1e-4)
    folder = write_job(tmp_path / "job", sft(base, checkpoint_every_s=1e-6), rows)
    (folder / "stop").touch()
    assert attempts.finish(folder, tmp_path / "models") == STOPPED
    (folder / "stop").unlink()
    (folder / "order.json").write_text(other.model_dump_json())
    train(tmp_path / "straight", other, rows)

    with caplog.at_level(logging.WARNING):
        run_here(folder)

    assert "of another order or other rows; training starts from the beginning" in caplog.text
    assert hashes(folder / "out") == hashes(tmp_path / "straight" / "out")


def test_a_damaged_checkpoint_costs_only_the_steps_since(
    base: Path, tmp_path: Path, attempts: Attempts, straight: dict[str, str]
) -> None:
    """A run whose newest checkpoint lost a bit ends with the bytes of one that never stopped."""
    folder = write_job(tmp_path / "job", sft(base, checkpoint_every_s=1e-6), chats(30))
    process = attempts.start(folder, tmp_path / "models")
    wait_for(folder, "checkpoints/step-0000000[3-9]")
    process.kill()
    process.join()
    newest = max((folder / "checkpoints").glob("step-*"))
    flip_a_bit(newest / TENSORS)

    run_here(folder)

    assert hashes(folder / "out") == straight


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.002)


def test_a_stop_file_ends_the_run_at_a_checkpoint(
    base: Path, tmp_path: Path, attempts: Attempts, straight: dict[str, str]
) -> None:
    """Exit code 75 after the step at hand; started again without it, the same bytes come out."""
    folder = write_job(tmp_path / "job", sft(base), chats(30))
    (folder / "stop").touch()

    for step in (1, 2, 3):
        assert attempts.finish(folder, tmp_path / "models") == STOPPED
        assert (folder / "checkpoints" / f"step-0000000{step}").is_dir()
    (folder / "stop").unlink()

    assert attempts.finish(folder, tmp_path / "models") == 0
    assert hashes(folder / "out") == straight


def test_a_run_that_is_told_to_end_writes_a_checkpoint_first(base: Path, tmp_path: Path, attempts: Attempts) -> None:
    """SIGTERM, as a machine sends it that goes down."""
    made = order(SftStage(optim=optim(max_steps=500, epochs=500, checkpoint_every_s=1000)), base, LORA)
    folder = write_job(tmp_path / "job", made, chats(30))
    process = attempts.start(folder, tmp_path / "models")
    wait_for(folder, "metrics.jsonl")
    process.terminate()
    process.join(60)
    saved = list((folder / "checkpoints").iterdir())
    train(tmp_path / "straight", made, chats(30))

    assert process.exitcode == STOPPED
    assert len(saved) == 1
    assert attempts.finish(folder, tmp_path / "models") == 0
    assert hashes(folder / "out") == hashes(tmp_path / "straight" / "out")


def test_a_run_whose_folder_has_a_newer_holder_writes_nothing(base: Path, tmp_path: Path, attempts: Attempts) -> None:
    """From the start on, and with an exit code of its own."""
    folder = write_job(tmp_path / "job", sft(base), chats(30))
    (folder / "holder.json").write_text('{"token": 8, "job": "j"}')

    assert attempts.finish(folder, tmp_path / "models", {"VCLLM_RUN_TOKEN": "7"}) == FENCED
    assert {entry.name for entry in folder.iterdir()} == {"order.json", "dataset.jsonl", "holder.json", "log.txt"}
    assert attempts.finish(folder, tmp_path / "models", {"VCLLM_RUN_TOKEN": "8"}) == 0


def test_a_run_that_loses_its_folder_ends_within_a_step(base: Path, tmp_path: Path, attempts: Attempts) -> None:
    """What stands there from now on is the new holder's: not even a checkpoint is written."""
    made = order(SftStage(optim=optim(max_steps=10**5, epochs=1e5, checkpoint_every_s=1e-6)), base)
    folder = write_job(tmp_path / "job", made, chats(30))
    (folder / "holder.json").write_text('{"token": 7, "job": "j"}')
    process = attempts.start(folder, tmp_path / "models", {"VCLLM_RUN_TOKEN": "7"})
    wait_for(folder, "checkpoints/step-*")
    (folder / "taken").write_text('{"token": 8, "job": "j"}')
    os.replace(folder / "taken", folder / "holder.json")
    process.join(60)

    assert process.exitcode == FENCED
    assert not list(folder.glob("out")) and not list(folder.glob("fault.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """A file that takes all but so many bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


@pytest.mark.parametrize("leave", [0, 60_000], ids=["full", "nearly-full"])
def test_on_a_full_disk_the_run_ends_and_resumes_to_the_same_bytes(
    leave: int, small_disk: Path, base: Path, attempts: Attempts, straight: dict[str, str], tmp_path: Path
) -> None:
    """A real disk: at whatever it wrote last, one sentence and exit code 2; what was there is whole."""
    folder = write_job(small_disk / "job", sft(base, checkpoint_every_s=1e-6), chats(30))
    (folder / "stop").touch()
    assert attempts.finish(folder, tmp_path / "models") == STOPPED
    (folder / "stop").unlink()
    before = hashes(folder / "checkpoints" / "step-00000001")
    filler = fill(small_disk, leave=leave)
    (folder / "log.txt").unlink()
    (folder / "log.txt").symlink_to(tmp_path / "log.txt")

    code = attempts.finish(folder, tmp_path / "models")

    assert code == FAILED, (tmp_path / "log.txt").read_text()
    assert "Free some disk space and resume; nothing was lost." in (tmp_path / "log.txt").read_text()
    assert leave == 0 or "Free some disk space" in fault(folder)
    assert hashes(folder / "checkpoints" / "step-00000001") == before
    filler.unlink()
    assert attempts.finish(folder, tmp_path / "models") == 0
    assert hashes(folder / "out") == straight


def test_metrics_have_one_line_a_step_after_a_kill(base: Path, tmp_path: Path, attempts: Attempts) -> None:
    """Steps that are done again replace their line; half a line goes."""
    made = order(SftStage(optim=optim(max_steps=60, epochs=60)), base)
    folder = write_job(tmp_path / "job", made, chats(30))
    process = attempts.start(folder, tmp_path / "models")
    wait_for(folder, "checkpoints/step-*")
    time.sleep(0.05)
    process.kill()
    process.join()
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 59, "loss": 1.0}\n{"step": 60, "lo')

    run_here(folder)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert all({"loss", "grad_norm", "learning_rate", "tokens"} <= line.keys() for line in lines)


def test_a_finished_run_is_not_done_again(base: Path, tmp_path: Path) -> None:
    """The second time it only says what it made; nothing it no longer needs is left."""
    made, rows = every_stage(base, max_steps=2)["preference"]
    first = train(tmp_path / "job", made, rows)

    assert run_here(tmp_path / "job", report=lambda _: pytest.fail("trained again")) == first
    assert {entry.name for entry in (tmp_path / "job").iterdir()} == {
        "order.json", "dataset.jsonl", "example.txt", "metrics.jsonl", "out", "result.json",
    }  # fmt: skip


def test_deaths_at_every_touch_of_the_disk_lose_nothing(base: Path, tmp_path: Path, attempts: Attempts) -> None:
    """A run that dies before its first rename or flush, and then always one later, still ends with the same bytes."""
    made, rows = every_stage(base, max_steps=3, checkpoint_every_s=1e-6)["preference"]
    train(tmp_path / "straight", made, rows)
    folder = write_job(tmp_path / "job", made, rows)
    deaths = 0

    while attempts.finish(folder, tmp_path / "models", {"DIE_AT_TOUCH": str(deaths % 13 + 1)}) != 0:
        deaths += 1
        assert deaths < 60

    assert deaths > 5
    assert hashes(folder / "out") == hashes(tmp_path / "straight" / "out")
