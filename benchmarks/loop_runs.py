"""One run of the loop's benchmark: a seed's start, an arm from there, TRL from there. Each writes `result.json` once.

    python -m benchmarks.loop_runs start 0          what all arms of seed 0 begin with
    python -m benchmarks.loop_runs ours 0

Knows how a run is made; not what is made of many of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.loop_arms import ARMS, changed
from benchmarks.loop_local import LocalRoles, LocalSystem
from benchmarks.loop_pace import PACED
from services.trainer.pipeline import Pipeline
from vcllm.alignment.archive import Archive
from vcllm.contracts.attacks import AttackRequest
from vcllm.contracts.evaluation import StageResult
from vcllm.contracts.recipes import Recipe
from vcllm.engine.prefill import Limits
from vcllm.stores.models import ModelStore, hash_files, write_atomic

HOME = Path("var/bench-loop")
RECIPE, LINEAGE = "loop", "line"
START = ("pretrain", "sft", "critic", "attacker")
RESULT = "result.json"
TRL_BETA = 0.1
"""TRL's own; with that of our recipe it did no better on dev."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


def main(name: str, seed: int) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    folder = HOME / f"seed-{seed}" / name
    if (folder / RESULT).is_file():
        return 0
    if name == "start":
        started = time.monotonic()
        LocalSystem(folder, write_recipe(folder, recipe()), threads=THREADS).run(RECIPE, LINEAGE, seed, stages=START)
        keep(folder, {"seconds": round(time.monotonic() - started, 1)})
    elif (arm := name.removeprefix(PACED)) == "trl":
        keep(folder, run_trl(folder, seed))
    else:
        keep(folder, run_arm(arm, folder, seed))
    return 0


def recipe() -> dict[str, Any]:
    return tomllib.loads(Path("recipes", f"{RECIPE}.toml").read_text(encoding="utf-8"))


def run_arm(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """The rounds of an arm, from the seed's start; its rows and what became of every question in the end."""
    arm, mine = ARMS[name], changed(recipe(), name)
    copy_start(folder, seed, with_sft=not arm.own_start)
    rounds = [f"round-{number}" for number in range(1, Recipe.model_validate(mine).rounds.count + 1)]
    pipelines: list[Pipeline] = []

    def change(pipeline: Pipeline) -> None:
        arm.pipeline(pipeline)
        report_on(pipeline, rounds[-1])
        pipelines.append(pipeline)

    system = LocalSystem(folder, write_recipe(folder, mine), threads=THREADS)
    if arm.own_start:
        system.run(RECIPE, LINEAGE, seed, change, stages=["sft"])
    started = time.monotonic()
    roles = system.run(RECIPE, LINEAGE, seed, change, stages=rounds)
    seconds = time.monotonic() - started
    results = [json.loads((folder / f"lineages/{LINEAGE}/stages/{one}.json").read_text()) for one in ["sft", *rounds]]
    return {
        "arm": name,
        "seed": seed,
        "seconds": round(seconds, 1),
        "role_seconds": {role: round(value, 1) for role, value in roles.seconds.items()},
        "stages": [_without_examples(result) for result in results],
        "outcomes": outcomes(pipelines[-1], results[-1]["version"]),
    }


def report_on(pipeline: Pipeline, last: str) -> None:
    """The report's questions are asked of what the last round leaves; before it the gate's, which are asked anyway."""
    measurer, measure = pipeline.measurer, pipeline.results.measure
    whole = measurer.report_figures

    def spare(name: str, *versions: Any, **more: Any) -> StageResult:
        measurer.__dict__["report_figures"] = (
            whole if name == last else lambda version, system=False: measurer.gate_figures(version, [])
        )
        return measure(name, *versions, **more)

    pipeline.results.__dict__["measure"] = spare


def run_trl(folder: Path, seed: int) -> dict[str, Any]:
    """TRL's online DPO from the seed's SFT, for as many answers and steps as an arm has; measured like one."""
    mine = changed(recipe(), "ours")
    copy_start(folder, seed)
    params = Recipe.model_validate(mine).rounds
    num_prompts = params.count * params.num_goals * params.num_samples // 2  # two answers each
    steps = params.count * (params.preference.optim.max_steps or 1)
    pipelines: list[Pipeline] = []
    system = LocalSystem(folder, write_recipe(folder, mine), threads=THREADS)
    system.run(RECIPE, LINEAGE, seed, pipelines.append, stages=["attacker"])
    store = ModelStore(system.settings.models)
    started = time.monotonic()
    order = {
        "model": str(store.path("actor", f"{LINEAGE}-sft").resolve()),
        "critic": str(store.path("critic", f"{LINEAGE}-critic").resolve()),
        "prompts": prompts(pipelines[-1], store, num_prompts),
        "prompts_per_step": num_prompts // steps,
        "steps": steps,
        "learning_rate": params.preference.optim.learning_rate,
        "beta": TRL_BETA,
        "temperature": params.temperature,
        "max_tokens": params.max_tokens,
        "chosen_min": params.chosen_min,
        "seed": seed,
        "threads": THREADS,
        "bf16": False,
    }
    attack_seconds = time.monotonic() - started
    write_atomic(folder / "trl" / "order.json", json.dumps(order, ensure_ascii=False).encode())
    command = [sys.executable, "-m", "benchmarks.loop_trl", str(folder / "trl" / "order.json")]
    subprocess.run(command, check=True)
    made = json.loads((folder / "trl" / RESULT).read_text())
    version = f"{LINEAGE}-trl"
    adopt(store, folder / "trl" / "out", version)
    measured: list[dict[str, Any]] = []

    def measure(pipeline: Pipeline) -> None:
        pipeline.results.measured("trl", version, f"actor/{LINEAGE}-sft")
        measured.append(pipeline.results.of("trl").model_dump(mode="json"))
        pipelines.append(pipeline)

    system.run(RECIPE, LINEAGE, seed, measure, stages=["attacker"])
    return {
        "arm": "trl",
        "seed": seed,
        "seconds": round(attack_seconds + made["seconds"], 1),
        "attack_seconds": round(attack_seconds, 1),
        "trl": made,
        "stages": [_without_examples(measured[0])],
        "outcomes": outcomes(pipelines[-1], version),
    }


def prompts(pipeline: Pipeline, store: ModelStore, num: int) -> list[dict[str, str]]:
    """So many queries that pass the filters, by the Attacker as its seeds made it, of goals all over the grid."""
    context, rounds = pipeline.context, pipeline.campaign.rounds
    roles, chance = LocalRoles(store, Limits(max_rows=128)), random.Random(f"trl-{context.seed}")
    archive, kept = Archive(rounds.cells, rounds.params.archive, "trl"), []
    while len(kept) < num:
        goals = rounds.maker.goals(archive, rounds.steering(1, {}), rounds.cells, num, chance)
        request = AttackRequest(
            goals=goals[:512], seed=chance.randrange(2**31), model=context.version("attacker"),
            max_tokens=rounds.params.attack_tokens,
        )  # fmt: skip
        kept += rounds.sieve.sift(roles.attacks(request).attacks).kept
    roles.close()
    return [{"query": one.query, "kind": one.goal.kind, "language": one.goal.cell.language} for one in kept[:num]]


def adopt(store: ModelStore, files: Path, version: str) -> None:
    """Make a folder of weights a version like the one it was trained from."""
    parent = store.manifest("actor", f"{LINEAGE}-sft")
    manifest = parent.model_copy(
        update={"name": version, "files": hash_files(files), "parent": f"actor/{parent.name}", "probes": []}
    )
    store.commit(files, manifest, lambda: None)


def outcomes(pipeline: Pipeline, version: str) -> list[dict[str, Any]]:
    """What the judge ruled on each of the report's questions; answers that were given already."""
    items = pipeline.measurer.items
    rulings = pipeline.measurer.judgements(version, items)
    return [
        {"pair": item.pair_id, "suite": item.suite, "language": item.language, "subdomain": item.subdomain,
         "outcome": ruling.outcome.value}
        for item, ruling in zip(items, rulings, strict=True)
    ]  # fmt: skip


def copy_start(folder: Path, seed: int, *, with_sft: bool = True) -> None:
    """The seed's versions and figures, as a home of its own; a run that was cut off begins anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HOME / f"seed-{seed}" / "start", folder, ignore=shutil.ignore_patterns("redis", RESULT))
    if not with_sft:
        lineage = folder / "lineages" / LINEAGE
        for made in (folder / "models/actor" / f"{LINEAGE}-sft", folder / "jobs/actor" / f"{LINEAGE}-sft"):
            shutil.rmtree(made)
        for file in [lineage / "stages/sft.json", *(lineage / "answers").glob("*-sft*")]:
            file.unlink()


def write_recipe(folder: Path, wanted: dict[str, Any]) -> Path:
    """A folder of recipes with this one in it, as TOML needs a writer that nothing else here would use."""
    Recipe.model_validate(wanted)
    recipes = folder / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    (recipes / f"{RECIPE}.toml").write_text("\n".join(_toml(wanted)) + "\n", encoding="utf-8")
    return recipes


def _toml(table: dict[str, Any], path: str = "") -> list[str]:
    """Plain values first, then the tables below."""
    plain = [
        f"{key} = {_value(value)}" for key, value in table.items() if value is not None and not isinstance(value, dict)
    ]
    lines = [f"[{path}]", *plain] if path else plain
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", *_toml(value, f"{path}.{key}" if path else key)]
    return lines


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _without_examples(result: dict[str, Any]) -> dict[str, Any]:
    slim = {key: value for key, value in result.items() if key != "examples"}
    if slim.get("round"):
        slim["round"] = {key: value for key, value in slim["round"].items() if key != "archive"}
    return slim


def keep(folder: Path, result: dict[str, Any]) -> None:
    write_atomic(folder / RESULT, json.dumps(result, ensure_ascii=False).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
