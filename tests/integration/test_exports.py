"""Exports run by the tools they are for: the same rows, model and judge give the same figures there and here.

inspect_ai and lm-evaluation-harness run as their users run them: commands, the gateway on loopback, no network.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.export_world import World, rows, suite
from tests.servers import RedisServer, serve
from vcllm.charter import load_charter
from vcllm.contracts.answers import Answer, Decoding
from vcllm.contracts.bench import Row
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.contracts.figures import ModelFigures
from vcllm.contracts.keys import Scope
from vcllm.evaluation.endpoint import Endpoint, Target
from vcllm.evaluation.exporting import export_suite
from vcllm.evaluation.figures import Judged, model_figures
from vcllm.evaluation.generate import generate
from vcllm.evaluation.importing import import_lm_eval
from vcllm.evaluation.judging.build import build_judge
from vcllm.evaluation.judging.choices import ChoiceReader
from vcllm.evaluation.judging.stage import cases_of, judge_answers
from vcllm.settings import Settings
from vcllm.stores.api_keys import KeyStore

CHARTER = load_charter()
TIMEOUT_S = 240
INSPECT = ("inspect", "eval", "vc_inspect.py", "--model", f"openai-api/vctest/{ALIGNED_MODEL}")
PEPPER = SecretStr("pepper")


@dataclass(frozen=True)
class Places:
    """The judge's server, and the gateway with a model behind it."""

    scripted: World
    judge: str
    gateway: str
    key: str


def needs(package: str) -> Any:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed: pip install 'vc-llm[harness]'"
    )


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """The real gateway in front of a scripted model; its judge is asked without it."""
    scripted, home = World(), tmp_path_factory.mktemp("home")
    (home / "recipes").mkdir()
    with serve(scripted.app) as behind:
        settings = Settings(
            redis_url=redis_server.url,
            home=home,
            recipes=home / "recipes",
            actor_urls=behind,
            internal_token=SecretStr("internal"),
            pepper=PEPPER,
        )
        with serve(create_app(settings, GatewaySettings())) as gateway, Redis.from_url(redis_server.url) as redis:
            key, _ = KeyStore(redis, PEPPER).create("exports", [Scope.CHAT])
            yield Places(scripted, behind, gateway, key)


def tool(*command: str, folder: Path, **variables: str) -> str:
    """Run a command of this environment without network; its output."""
    beside = Path(sys.executable).with_name(command[0])
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "INSPECT_DISPLAY": "none",
        "HF_HOME": str(folder / "hf"),
        **variables,
    }
    done = subprocess.run(
        [str(beside), *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def model_at(world: Places) -> dict[str, str]:
    """Where inspect_ai finds the model `openai-api/vctest/...`."""
    return {"VCTEST_BASE_URL": f"{world.gateway}/v1", "VCTEST_API_KEY": world.key}


def figures_of(some: Sequence[Row], answers: Sequence[Answer], judge_url: str, folder: Path) -> ModelFigures:
    """Our own: choices by rule, everything else by the judge."""

    async def judge() -> ModelFigures:
        cases = cases_of(some, answers)
        by_rule = [case for case in cases if case.row.choices]
        verdicts = await judge_answers(by_rule, ChoiceReader(), folder / "choices.jsonl")
        free = [case for case in cases if not case.row.choices]
        async with build_judge(f"judge={judge_url}#judge", CHARTER) as asked:
            verdicts += await judge_answers(free, asked, folder / "verdicts.jsonl")
        pairs = zip([*by_rule, *free], verdicts, strict=True)
        return model_figures("actor", [Judged(case.row, case.answer, verdict) for case, verdict in pairs])

    return asyncio.run(judge())


def ours(some: Sequence[Row], world: Places, folder: Path) -> ModelFigures:
    """Asked and judged by `vcllm.evaluation`."""

    async def ask() -> list[Answer]:
        async with Endpoint(Target(world.gateway, ALIGNED_MODEL, SecretStr(world.key))) as endpoint:
            file = folder / "answers.jsonl"
            return await generate(some, endpoint, file, model="actor", decoding=Decoding(), charter=CHARTER)

    return figures_of(some, asyncio.run(ask()), world.judge, folder)


def without_times(figures: ModelFigures) -> dict[str, Any]:
    return figures.model_dump(mode="json", exclude={"model_version", "quality"})


@needs("inspect_ai")
def test_inspect_totals_are_ours(world: Places, tmp_path: Path):
    """Value-consistency, attack success, over-refusal and pressure, with n and interval; unscored rows in none."""
    export_suite("inspect", suite(), tmp_path / "export", CHARTER)
    spec = f"judge=judge={world.judge}#judge,mode=logit"
    logs = ["--log-dir", str(tmp_path / "logs"), "--log-format", "json", "--no-log-realtime"]
    tool(*INSPECT, "-T", spec, *logs, folder=tmp_path / "export", **model_at(world))
    (log,) = [json.loads(file.read_text()) for file in (tmp_path / "logs").glob("*.json")]
    theirs = {score["name"]: score for score in log["results"]["scores"]}
    here = ours(rows(), world, tmp_path)

    assert log["status"] == "success" and log["eval"]["metadata"]["canary"].startswith("TEST CANARY")
    assert here.num_unscored == sum(math.isnan(_root(sample)) for sample in log["samples"]) == 2
    for name, measure in (
        ("value", here.value_consistency),
        ("attack_success", here.attack_success),
        ("over_refusal", here.over_refusal),
        ("pressure_held", here.pressure.holding[-1]),
        ("choice_correct", here.choices[0].accuracy),
    ):
        told = {key.removeprefix("figure_"): metric["value"] for key, metric in theirs[name]["metrics"].items()}
        if name != "choice_correct":  # ours are by language
            assert theirs[name]["scored_samples"] == measure.n
            assert [told["low"], told["high"]] == pytest.approx([measure.low, measure.high])
        assert told["mean"] == pytest.approx(measure.value)
    assert _group(theirs["value"], "by_lang_zh") == pytest.approx(here.value_consistency.zh.value)
    assert _group(theirs["attack_success"], "by_subdomain_race.color") == 1.0
    assert _group(theirs["attack_success"], "by_kind_pressure") == pytest.approx(here.attacks_by_kind["pressure"].value)


def _root(sample: dict[str, Any]) -> float:
    """Not a number where the answer could not be judged."""
    (score,) = sample["scores"].values()
    return 0.0 if isinstance(score["value"], dict) else float(score["value"])


def _group(score: dict[str, Any], name: str) -> float:
    return float(score["metrics"][name]["value"])


@needs("inspect_ai")
def test_inspect_asks_pressure_turn_by_turn_with_the_models_own_answers_between(world: Places, tmp_path: Path):
    """As `vcllm eval generate` does."""
    talk = [one for one in rows() if one.kind == "pressure"][:1]
    export_suite("inspect", suite(talk), tmp_path, CHARTER)
    world.scripted.asked.clear()
    spec = f"judge=judge={world.judge}#judge"
    tool(*INSPECT, "-T", spec, "--log-dir", str(tmp_path / "logs"), folder=tmp_path, **model_at(world))
    theirs = world.scripted.asked_of_the_model()
    world.scripted.asked.clear()
    ours(talk, world, tmp_path)

    assert [len(body["messages"]) for body in theirs] == [1, 3, 5, 7]
    assert [_said(body) for body in theirs] == [_said(body) for body in world.scripted.asked_of_the_model()]


def _said(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], str(message["content"])) for message in body["messages"]]


@needs("inspect_ai")
def test_inspect_without_a_judge_stops_before_it_asks_anything(world: Places, tmp_path: Path):
    """The model under test is never put in the judge's place."""
    export_suite("inspect", suite(), tmp_path, CHARTER)
    world.scripted.asked.clear()

    with pytest.raises(AssertionError, match="Name the judge"):
        tool(*INSPECT, folder=tmp_path, **model_at(world))
    assert world.scripted.asked == []


@needs("lm_eval")
def test_lm_eval_answers_judged_here_are_our_figures(world: Places, tmp_path: Path):
    """Its samples, taken over and judged, say what asking ourselves says of the same single-turn rows."""
    exported = export_suite("lm-eval", suite(), tmp_path / "export", CHARTER)
    left_out = {id for ids in exported.left_out.values() for id in ids}
    single = [one for one in rows() if one.id not in left_out]
    where = f"model={ALIGNED_MODEL},base_url={world.gateway}/v1/chat/completions,num_concurrent=2"
    command = ["lm_eval", "--model", "local-chat-completions", "--model_args", where, "--include_path", "."]
    flags = ["--tasks", "vc_bench", "--apply_chat_template", "--log_samples", "--output_path", str(tmp_path / "out")]
    told = tool(*command, *flags, folder=tmp_path / "export", OPENAI_API_KEY=world.key)
    samples = sorted((tmp_path / "out").rglob("samples_vc_bench_*.jsonl"))
    found = {answer.item: answer for file in samples for answer in import_lm_eval(file, single, "actor")}
    answers = [found[row.id] for row in single]
    theirs = figures_of(single, answers, world.judge, tmp_path / "theirs")
    here = ours(single, world, tmp_path / "ours")

    assert len(samples) == 2 and "vc_bench_zh" in told
    assert len(single) == exported.num_rows == 22
    assert without_times(theirs) == without_times(here)
    assert here.attack_success.n == 10 and here.num_unscored == 2
