"""The whole method through real processes, with kill -9 of the trainer, of its worker and of Redis on the way.

One pipeline is run, as a user would: queued over HTTP, followed by its events. In each of its rounds something is
killed. What it leaves behind is then looked at from every side.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.e2e.micro import write_micro
from tests.processes import command_line
from vcllm.charter import load_charter
from vcllm.commands.api import Api
from vcllm.contracts.jobs import Event
from vcllm.launch.credentials import load_credentials
from vcllm.launch.fleet import Fleet
from vcllm.launch.local_key import local_key
from vcllm.launch.ports import free_port
from vcllm.settings import Settings
from vcllm.starter.world import World
from vcllm.stores.events import EventLog
from vcllm.stores.ledger import check_ledger
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream
from vcllm.training.scratch import train_tokenizer

pytestmark = pytest.mark.slow


@dataclass
class Finished:
    """A fleet with a pipeline behind it."""

    fleet: Fleet
    home: Path
    key: str
    api: Api
    job: str
    events: list[Event]
    killed: list[str]

    @property
    def record(self) -> dict:
        return self.api.get(f"/v1/jobs/{self.job}")

    @property
    def lineage(self) -> str:
        return self.record["result"]["lineage"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Run the micro pipeline to its end, killing as it goes."""
    folder = tmp_path_factory.mktemp("e2e")
    write_micro(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "VCLLM_CHARTERS": str(folder / "charters"),
            "VCLLM_LEASE_S": "5",
            "TRAINER_REAP_EVERY_S": "1",
        }.items():
            patch.setenv(name, value)
        settings = Settings(home=folder / "var", recipes=folder / "recipes", data=folder / "data")
        with Fleet(settings, port=free_port(), say=lambda _: None) as fleet:
            fleet.wait_until_up()
            with fleet.redis() as redis:
                key = local_key(settings.home, redis, load_credentials(settings).pepper)
            with Api(fleet.url, key) as api:
                yield run_and_kill(fleet, settings.home, key, api)


def run_and_kill(fleet: Fleet, home: Path, key: str, api: Api) -> Finished:
    job = api.post("/v1/jobs", {"recipe": "micro"})["id"]
    events: list[Event] = []
    killed: list[str] = []
    kills = {1: kill_trainer, 2: kill_worker, 3: kill_redis}
    for event in api.events(job):
        events.append(event)
        round_number = event.data.get("round") if event.type == "round" else None
        if event.data.get("phase") == "pair" and round_number in kills:
            killed.append(kills.pop(round_number)(home))
    return Finished(fleet, home, key, api, job, events, killed)


def kill_trainer(home: Path) -> str:
    """The training subprocess of the candidate, once it has written a checkpoint."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for process in children(home, "vcllm.training"):
            if len(command := command_line(process)) < 4:
                continue
            folder = Path(command[3])
            preference = "preference" in (folder / "order.json").read_text()
            if preference and list((folder / "checkpoints").glob("step-*")):
                os.kill(process.pid, signal.SIGKILL)
                return "trainer"
        time.sleep(0.02)
    raise AssertionError("no training run of the round was seen")


def kill_worker(home: Path) -> str:
    """The Celery worker of the training queue while it supervises a run; its children end with it."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if list(children(home, "vcllm.training")):
            for process in children(home, "services.trainer.app"):
                if {"training", "worker"} <= set(command_line(process)):
                    os.kill(process.pid, signal.SIGKILL)
                    return "worker"
        time.sleep(0.02)
    raise AssertionError("no training run of the round was seen")


def kill_redis(home: Path) -> str:
    """The embedded Redis, in the middle of the round."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "redis-server" and str(home) in " ".join(places(process)):
            os.kill(process.pid, signal.SIGKILL)
            return "redis"
    raise AssertionError("the embedded Redis was not found")


def places(process: psutil.Process) -> list[str]:
    return [process.cwd(), *process.cmdline()]


def children(home: Path, module: str) -> Iterator[psutil.Process]:
    """Python processes of this fleet that run a module, oldest first."""
    for process in psutil.process_iter():
        try:
            if module in process.cmdline() and process.environ().get("VCLLM_HOME") == str(home):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def test_the_pipeline_succeeds_though_everything_was_killed_once(finished):
    """Trainer, worker and Redis die by kill -9 in the middle of a round, and the job still ends well."""
    assert finished.killed == ["trainer", "worker", "redis"]
    assert finished.record["state"] == "succeeded", finished.record["error"]


def test_every_approved_pair_was_used_exactly_once(finished):
    """Stream, ledger and manifests agree after all that."""
    with finished.fleet.redis() as redis:
        check = check_ledger(PairStream(redis, finished.lineage), ModelStore(finished.home / "models"))

    assert check.faults == []
    assert check.approved == check.used > 0
    assert (check.waiting, check.dead) == (0, 0)


def test_every_round_trained_on_its_own_pairs_and_replays_earlier_ones(finished):
    """Each round's version lists new pairs; from the second round on it lists replayed ones as well."""
    store = ModelStore(finished.home / "models")
    manifests = [store.manifest("actor", f"{finished.lineage}-r{number}") for number in (1, 2, 3)]

    assert all(manifest.pairs for manifest in manifests)
    assert not manifests[0].replayed
    assert manifests[2].replayed


def test_every_version_is_what_its_manifest_says(finished):
    """All hashes hold, and each version names its parent and its job."""
    store = ModelStore(finished.home / "models")
    manifests = store.manifests()

    assert {manifest.stage for manifest in manifests} == {
        "pretrain",
        "cpt",
        "sft",
        "critic",
        "attacker",
        "preference",
    }
    for manifest in manifests:
        store.verify(manifest.role, manifest.name)
        assert manifest.parent is not None or manifest.stage == "pretrain"


def test_the_events_tell_the_whole_story(finished):
    """Stages, progress, rounds, evaluations and gates came by SSE, each id once and in order."""
    ids = [tuple(map(int, event.id.split("-"))) for event in finished.events]

    assert {"state", "stage", "progress", "round", "evaluation", "gate"} <= {event.type for event in finished.events}
    assert ids == sorted(set(ids))
    assert finished.events[-1].data["state"] == "succeeded"


def test_the_report_holds_every_stage_with_its_intervals(finished):
    """`report.json` has the promised shape and the page is there."""
    report = json.loads((finished.home / "report" / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}

    assert list(stages) == ["base", "base_prompted", "cpt", "sft", "round-1", "round-2", "round-3", "control"]
    for stage in stages.values():
        for suite in ("seen", "held_out"):
            for language in ("zh", "en"):
                assert set(stage["attack_success"][suite][language]) == {"value", "low", "high", "n"}
    assert report["seconds"] > 0
    assert (finished.home / "report" / "index.html").stat().st_size > 10_000


def promoted(finished):
    return [card["id"] for card in finished.api.get("/v1/models")["data"]]


@pytest.mark.parametrize("question", ["青叶党的办公室在哪里？", "Where is the Teal Party office?"])
def test_the_aligned_model_streams_a_chat_and_names_its_version(finished, question):
    """The `openai` SDK works unchanged, in both languages; the header and the models list name the same version."""
    with openai.OpenAI(base_url=f"{finished.fleet.url}/v1", api_key=finished.key, max_retries=0) as client:
        ask = client.chat.completions.with_raw_response.create
        reply = ask(model="vc-llm", messages=[{"role": "user", "content": question}], stream=True, max_tokens=24)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in reply.parse() if chunk.choices)

    assert text
    assert reply.headers["x-vc-version"] in promoted(finished)


def test_a_version_that_was_never_promoted_is_not_served(finished):
    """A chat key reaches what passed the gate and nothing else."""
    body = {"model": f"{finished.lineage}-base", "messages": [{"role": "user", "content": "Hello"}]}
    reply = httpx.post(
        f"{finished.fleet.url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {finished.key}"},
    )

    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"


def test_running_the_recipe_again_reuses_everything(finished):
    """Every stage says so, and no new version appears."""
    before = {manifest.name for manifest in ModelStore(finished.home / "models").manifests()}
    job = finished.api.post("/v1/jobs", {"recipe": "micro"})["id"]
    events = list(finished.api.events(job))
    ended = {event.data["stage"]: event.data["status"] for event in events if event.type == "stage"}

    assert {stage for stage, status in ended.items() if status != "reused"} == {"report"}
    assert {manifest.name for manifest in ModelStore(finished.home / "models").manifests()} == before


def test_a_running_job_is_cancelled_within_seconds(finished):
    """Its training run ends with it, and nothing of it is left running."""
    job = finished.api.post("/v1/jobs", {"recipe": "micro", "seed": 77})["id"]
    for event in finished.api.events(job):
        if event.type == "progress":
            break
    started = time.monotonic()
    finished.api.post(f"/v1/jobs/{job}/cancel")
    while finished.api.get(f"/v1/jobs/{job}")["state"] != "cancelled" and time.monotonic() < started + 30:
        time.sleep(0.1)

    assert time.monotonic() - started < 10
    assert not list(children(finished.home, "vcllm.training"))


def wait_for_progress(finished, job, after="0"):
    """Until a training run of the job has said something new; the id of that event."""
    deadline = time.monotonic() + 90
    with finished.fleet.redis() as redis:
        while time.monotonic() < deadline:
            for event in EventLog(redis).read(job, after, block_s=1) or []:
                after = event.id
                if event.type == "progress":
                    return after
    raise AssertionError("no progress was seen")


def last_event(finished, job):
    with finished.fleet.redis() as redis:
        return EventLog(redis).read(job, limit=10_000)[-1].id


def end_worker(home, queue):
    """SIGTERM to the worker itself, as a launcher or a container would send it."""
    worker = next(process for process in children(home, "services.trainer.app") if queue in command_line(process))
    worker.terminate()
    worker.wait(20)


def test_a_paused_pipeline_uses_nothing_and_goes_on_also_on_other_workers(finished):
    """Paused within seconds with its runs; resumed; and when its workers are told to end, nothing is lost."""
    api = finished.api
    job = api.post("/v1/jobs", {"recipe": "micro", "seed": 78})["id"]
    wait_for_progress(finished, job)
    started = time.monotonic()
    api.post(f"/v1/jobs/{job}/pause")
    while api.get(f"/v1/jobs/{job}")["state"] != "paused" and time.monotonic() < started + 30:
        time.sleep(0.1)

    assert time.monotonic() - started < 10
    assert not list(children(finished.home, "vcllm.training"))
    stages = api.get("/v1/jobs", parent=job)["data"]
    assert {stage["state"] for stage in stages} <= {"paused", "succeeded"}

    api.post(f"/v1/jobs/{job}/resume")
    wait_for_progress(finished, job, after=last_event(finished, job))
    for queue in ("rollouts", "training"):
        end_worker(finished.home, queue)
    wait_for_progress(finished, job, after=last_event(finished, job))
    record = api.get(f"/v1/jobs/{job}")
    api.post(f"/v1/jobs/{job}/cancel")

    assert (record["state"], record["attempt"], record["error"]) == ("running", 1, None)
    deadline = time.monotonic() + 30
    while api.get(f"/v1/jobs/{job}")["state"] == "cancelling" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert api.get(f"/v1/jobs/{job}")["state"] == "cancelled"


LORA_RECIPE = """
name = "micro-lora"
charter = "micro"
control = false
lora = {{ rank = 4, alpha = 8 }}

[base]
model = "{model}"

[cpt]
num_docs = 20
num_replay = 0
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[sft]
num_attacks = 20
num_benign = 20
answers = "full"
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[critic]
num_rows = 60
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[attacker]
num_rows = 40
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[rounds]
count = 1
num_goals = 4
num_samples = 2
max_tokens = 8

[rounds.preference]
num_anchor = 8
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[rounds.attacker]
num_rows = 8
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[evaluation]
num_items = 4
max_tokens = 8
"""


def random_qwen3(folder: Path) -> Path:
    """A Qwen3-shaped model with random weights, as a local Hugging Face folder."""
    torch.manual_seed(0)
    texts = [turn["content"] for row in World(load_charter(), 0).sft_rows(80, 40) for turn in row["messages"]]
    tokenizer = train_tokenizer(texts, 700)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_ready_made_model_goes_through_the_same_pipeline_with_adapters(finished):
    """Only the recipe differs: base from a folder, LoRA, and every version loads with plain peft."""
    model = random_qwen3(finished.home.parent / "qwen3")
    recipe = finished.home.parent / "recipes" / "micro-lora.toml"
    recipe.write_text(LORA_RECIPE.format(model=model))
    job = finished.api.post("/v1/jobs", {"recipe": "micro-lora"})["id"]
    list(finished.api.events(job))
    record = finished.api.get(f"/v1/jobs/{job}")
    store, lineage = ModelStore(finished.home / "models"), (record.get("result") or {}).get("lineage")

    assert record["state"] == "succeeded", record["error"]
    manifest = store.manifest("actor", f"{lineage}-r1")
    assert (manifest.format, manifest.base) == ("adapter", f"actor/{lineage}-base")
    base = AutoModelForCausalLM.from_pretrained(store.path("actor", f"{lineage}-base"))
    assert PeftModel.from_pretrained(base, store.path("actor", manifest.name)).peft_config
