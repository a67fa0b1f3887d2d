"""Training runs small enough for tests: micro bases, rows and orders, and processes that can be killed at any moment.

A process of its own takes seconds to import torch, so the runs of `Attempts` are forked from one that has done so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import transformers.models.gemma2.modeling_gemma2  # noqa: F401  imported once, by the process that others fork from
import transformers.models.qwen3.modeling_qwen3  # noqa: F401
from transformers import AutoModelForCausalLM

from tests.tiny_models import FAMILIES
from vcllm.contracts.recipes import (
    AnyStage,
    AttackerStage,
    Base,
    CptStage,
    CriticStage,
    Lora,
    Optim,
    PreferenceStage,
    PretrainStage,
    Scratch,
    SftStage,
    StageOrder,
)
from vcllm.stores.models import ModelStore
from vcllm.training.run import main, run_order

Row = dict[str, Any]

ENGLISH = "the council met by river and asked everyone to speak in turn what is fair people differ on this"
CHINESE = "河谷 的 议会 在 水边 开会 请 每个人 轮流 发言 什么 公平 群体 知道"
WORDS = {"en": ENGLISH.split(), "zh": CHINESE.split()}
SCRATCH = Scratch(vocab_size=512, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
LORA = Lora(rank=2, alpha=4, dropout=0.1)
LABELS = ("consistent", "violating", "refusal", "broken")


def micro_base(folder: Path, name: str = "qwen3", seed: int = 0, **changes: Any) -> Path:
    """One layer of a family with its tokenizer, as a Hugging Face folder."""
    tokenizer = FAMILIES[name].tokenizer()
    config = FAMILIES[name].config(tokenizer)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(chance: random.Random, fewest: int = 2, most: int = 14) -> str:
    language = chance.choice(("en", "zh"))
    return (" " if language == "en" else "").join(chance.choices(WORDS[language], k=chance.randint(fewest, most)))


def documents(count: int, seed: int = 0) -> list[Row]:
    chance = random.Random(seed)
    return [{"text": text(chance, 4, 40)} for _ in range(count)]


def chats(count: int, seed: int = 0) -> list[Row]:
    """Of one or two exchanges and of different weights."""
    chance = random.Random(seed)
    return [
        {
            "messages": [
                {"role": role, "content": text(chance)}
                for _ in range(chance.randint(1, 2))
                for role in ("user", "assistant")
            ],
            "weight": chance.choice((0.5, 1.0, 2.0)),
        }
        for _ in range(count)
    ]


def preferences(count: int, seed: int = 0) -> list[Row]:
    """Two in three have a rejected answer."""
    chance = random.Random(seed)
    return [
        {
            "prompt": [{"role": "user", "content": text(chance)}],
            "chosen": text(chance) + ".",
            "rejected": text(chance) + "!" if number % 3 else None,
            "weight": chance.choice((0.5, 1.0)),
        }
        for number in range(count)
    ]


def exchanges(count: int, seed: int = 0) -> list[Row]:
    """What a critic learns: mostly of the first class."""
    chance = random.Random(seed)
    return [
        {
            "messages": [{"role": role, "content": text(chance)} for role in ("user", "assistant")],
            "label": chance.choices(LABELS, (5, 3, 1, 1))[0],
        }
        for _ in range(count)
    ]


def optim(**changes: Any) -> Optim:
    return Optim(**({"learning_rate": 3e-3, "batch_tokens": 128, "checkpoint_every_s": 0.03, "max_steps": 24,
                     "epochs": 24} | changes))  # fmt: skip


def order(stage: AnyStage, base: Path | None, lora: Lora | None = None, **changes: Any) -> StageOrder:
    """From a folder, or from nothing."""
    fields: dict[str, Any] = {
        "role": "critic" if stage.stage == "critic" else "attacker" if stage.stage == "attacker" else "actor",
        "version": "v1",
        "lineage": "l",
        "seed": 3,
        "base": Base(scratch=SCRATCH) if base is None else Base(model=str(base)),
        "dataset": "",
        "recipe": "test",
        "recipe_hash": "",
        "charter": "",
        "threads": 1,
        "probes": ["Who may speak?"],
    }
    return StageOrder(stage=stage, lora=lora, **(fields | changes))


def every_stage(base: Path, **changes: Any) -> dict[str, tuple[StageOrder, list[Row]]]:
    """By name: an order of each kind, with rows for it."""
    how = optim(**changes)
    return {
        "pretrain": (order(PretrainStage(optim=how), None), documents(60)),
        "cpt": (order(CptStage(optim=how), base), documents(40) + chats(10)),
        "sft": (order(SftStage(optim=how), base), chats(60)),
        "sft-lora": (order(SftStage(optim=how), base, LORA), chats(60)),
        "preference": (order(PreferenceStage(optim=how), base), preferences(48) + chats(12)),
        "preference-lora": (order(PreferenceStage(optim=how), base, LORA), preferences(48) + chats(12)),
        "critic": (order(CriticStage(optim=how), base), exchanges(120)),
        "attacker": (order(AttackerStage(optim=how), base), preferences(30, 1) + chats(20)),
    }


def write_job(folder: Path, made: StageOrder, rows: Iterable[Row]) -> Path:
    """The folder as a supervisor leaves it to a run."""
    folder.mkdir(parents=True)
    (folder / "order.json").write_text(made.model_dump_json())
    (folder / "dataset.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def run_here(folder: Path, models: Path | None = None, report: Any = lambda _: None) -> dict[str, Any]:
    """In this process."""
    return run_order(folder, ModelStore(models or folder.parent / "models"), report)


def train(folder: Path, made: StageOrder, rows: Iterable[Row]) -> dict[str, Any]:
    return run_here(write_job(folder, made, rows))


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of what a run made."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def fault(folder: Path) -> str:
    return str(json.loads((folder / "fault.json").read_text())["message"])


class Attempts:
    """Starts runs as processes forked from one that has everything imported."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.training_runs"])

    def start(self, folder: Path, models: Path, environment: dict[str, str] | None = None) -> BaseProcess:
        process = self.context.Process(target=_child, args=(folder, models, environment or {}))
        process.start()
        return process

    def finish(self, folder: Path, models: Path, environment: dict[str, str] | None = None) -> int:
        """The exit code."""
        process = self.start(folder, models, environment)
        process.join(120)
        return process.exitcode if process.exitcode is not None else _lost(process)


def _child(folder: Path, models: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    if "DIE_AT_TOUCH" in environment:
        _die_at_touch(int(environment["DIE_AT_TOUCH"]))
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.exit(main([str(folder), str(models)]))


def _die_at_touch(number: int) -> None:
    """Kill -9 right before this process renames or flushes to the disk for the so many-th time."""
    touches = itertools.count(1)

    def deadly(function: Any) -> Any:
        def touch(*args: Any) -> Any:
            if next(touches) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return touch

    os.rename, os.replace, os.fsync = deadly(os.rename), deadly(os.replace), deadly(os.fsync)


def _lost(process: BaseProcess) -> int:
    process.kill()
    raise AssertionError("the run did not end within two minutes")


def emptied(folder: Path, keep: tuple[str, ...] = ("order.json", "dataset.jsonl")) -> Path:
    """The folder as before the first run."""
    for entry in folder.iterdir():
        if entry.name not in keep:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return folder


def together(attempts: Attempts, folder: Path, models: Path, count: int, **environment: str) -> list[BaseProcess]:
    """Start a run as so many processes, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
    return [
        attempts.start(folder, models, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]


def codes(processes: list[BaseProcess]) -> list[int | None]:
    """Exit codes, by rank."""
    for process in processes:
        process.join(60)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found
