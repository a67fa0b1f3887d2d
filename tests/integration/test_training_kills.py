"""Kill -9 at any moment, start again, and end with the very bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.training_runs import Attempts, emptied, every_stage, hashes, micro_base, write_job

KILLS = 20
STAGES = ("pretrain", "cpt", "sft", "sft-lora", "preference", "preference-lora", "critic", "attacker")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def attempts() -> Attempts:
    return Attempts()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_killed_twenty_times_ends_with_the_same_bytes(
    name: str, base: Path, attempts: Attempts, tmp_path: Path
) -> None:
    """Kills fall anywhere: while rows are encoded, in a step, in a checkpoint, while the version is written."""
    made, rows = every_stage(base)[name]
    straight = write_job(tmp_path / "straight", made, rows)
    attempts.finish(straight, tmp_path / "models")  # the first run also warms the disk's cache up
    emptied(straight)
    started = time.monotonic()
    assert attempts.finish(straight, tmp_path / "models") == 0
    usual_s = time.monotonic() - started
    expected = hashes(straight / "out")
    chance, kills, moments = random.Random(name), 0, []
    killed = write_job(tmp_path / "killed", made, rows)

    while kills < KILLS:
        process = attempts.start(killed, tmp_path / f"models-{kills}")
        if chance.random() < 0.5:
            process.join(chance.uniform(0.1, 1.0) * usual_s)
        else:  # however fast the machine is at the moment
            wait_for_progress(process, killed)
            process.join(chance.uniform(0.0, 0.02))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            moments.append(furthest(killed))
        then = chance.random()  # mostly on with what is there, sometimes to the end, sometimes anew
        if process.exitcode == 0 or then < 0.15:
            assert attempts.finish(killed, tmp_path / f"models-{kills}") == 0
            assert hashes(killed / "out") == expected
        if process.exitcode == 0 or then < 0.25:
            emptied(killed)
    assert attempts.finish(killed, tmp_path / "models") == 0

    assert hashes(killed / "out") == expected
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(set(moments)) > 3, f"all kills fell at the same point: {moments}"


def wait_for_progress(process: BaseProcess, folder: Path) -> None:
    """Until the run has come further than it was, or has ended."""
    before = furthest(folder)
    while process.is_alive() and furthest(folder) == before:
        time.sleep(0.001)


def furthest(folder: Path) -> str:
    """How far a run had come."""
    if (folder / "result.json").exists():
        return "result"
    steps = sorted(file.name for file in folder.glob("checkpoints/step-*"))
    return steps[-1] if steps else "encoded" if (folder / "encoded").exists() else "nothing"
