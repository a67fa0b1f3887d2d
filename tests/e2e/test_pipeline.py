"""The whole method through real processes, with kill -9 of every service, of a training run and of Redis on the way.

One pipeline is run, as a user would: queued over HTTP, followed by its events. Phase by phase of its rounds something
is killed. What it leaves behind is then looked at from every side.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
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
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.jobs import Event
from vcllm.contracts.traces import trace_of
from vcllm.launch.credentials import load_credentials
from vcllm.launch.fleet import Fleet
from vcllm.launch.local_key import local_key
from vcllm.launch.ports import free_port
from vcllm.launch.services import SERVICES
from vcllm.settings import Settings
from vcllm.starter.world import World
from vcllm.stores.events import EventLog
from vcllm.stores.ledger import check_ledger
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream
from vcllm.training.scratch import train_tokenizer

pytestmark = pytest.mark.slow


KILLS = {
    (1, "started"): "attacker",
    (1, "attack"): "actor",
    (1, "answer"): "critic",
    (1, "pair"): "training run",
    (2, "attack"): "gateway",
    (2, "started"): "trainer-reaper",
    (2, "pair"): "trainer-training",
    (3, "critique"): "trainer-rollouts",
    (3, "pair"): "redis",
}
"""Round and what was told of it to what is killed then. A phase is told once it is over: after `attack` the Actor is
asked, after `answer` the Critic. The first goals of a round are played while the round before it trains. Both workers
are lost after the reaper, so that it is the new one which finds their jobs."""
COMMANDS = {service.name: service.command for service in SERVICES}


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
    said: list[str]
    """By the fleet, to its operator."""

    @property
    def record(self) -> dict:
        return self.api.get(f"/v1/jobs/{self.job}")

    @property
    def lineage(self) -> str:
        return self.record["result"]["lineage"]

    @property
    def report(self) -> dict:
        return json.loads((self.home / "report" / "report.json").read_text())


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
        said: list[str] = []
        with Fleet(settings, port=free_port(), say=said.append) as fleet:
            fleet.wait_until_up()
            fleet.check()
            with fleet.redis() as redis:
                key = local_key(settings.home, redis, load_credentials(settings).pepper)
            with Api(fleet.url, key) as api:
                job, events, killed = run_and_kill(settings.home, api)
                fleet.wait_until_up()
                yield Finished(fleet, settings.home, key, api, job, events, killed, said)


def run_and_kill(home: Path, api: Api) -> tuple[str, list[Event], list[str]]:
    """The job's id, its events, and what was killed, in order; a round that is told again is left in peace."""
    job = api.post("/v1/jobs", {"recipe": "micro"})["id"]
    events: list[Event] = []
    killed: list[str] = []
    kills = dict(KILLS)
    for event in api.events(job):
        events.append(event)
        if name := kills.pop(moment(event), None):
            os.kill(found(name, home).pid, signal.SIGKILL)
            killed.append(name)
    return job, events, killed


def moment(event: Event) -> tuple[int, str] | None:
    """The round and what is told of it, if anything is."""
    stage = event.data.get("stage") or ""
    if event.type == "round":
        return event.data["round"], event.data["phase"]
    if event.type == "stage" and stage.startswith("round-"):
        return int(stage.removeprefix("round-")), event.data["status"]
    return None


def found(name: str, home: Path) -> psutil.Process:
    """The process of that name, as soon as it is there."""
    find = {"training run": candidate_run, "trainer-training": busy_worker, "redis": embedded_redis}
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        process = find[name](home) if name in find else service(name, home)
        if process is not None:
            return process
        time.sleep(0.02)
    raise AssertionError(f"{name} was not seen")


def service(name: str, home: Path) -> psutil.Process | None:
    """The process that the fleet started; those that it started itself have the same command."""
    _, *arguments = COMMANDS[name]
    return next((one for one in children(home, arguments[1]) if command_line(one)[1:] == arguments), None)


def candidate_run(home: Path) -> psutil.Process | None:
    """The training subprocess of a round's candidate, once it has written a checkpoint."""
    for process in children(home, "vcllm.training"):
        if len(command := command_line(process)) < 4:
            continue
        folder = Path(command[3])
        preference = "preference" in (folder / "order.json").read_text()
        if preference and list((folder / "checkpoints").glob("step-*")):
            return process
    return None


def busy_worker(home: Path) -> psutil.Process | None:
    """The Celery worker of the training queue while it supervises a run; its children end with it."""
    return service("trainer-training", home) if list(children(home, "vcllm.training")) else None


def embedded_redis(home: Path) -> psutil.Process | None:
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "redis-server" and str(home) in " ".join(places(process)):
            return process
    return None


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
    """Whatever the fleet consists of died by kill -9 in the middle of a round, and the job still ends well."""
    assert finished.killed == [*KILLS.values()]
    assert sorted(finished.killed) == sorted([*COMMANDS, "training run", "redis"])
    assert finished.record["state"] == "succeeded", finished.record["error"]


def test_whatever_was_killed_is_started_again(finished):
    """The fleet gives nothing up, and tells its operator of each."""
    finished.fleet.check()

    restarted = {line.split()[0] for line in finished.said if "started again" in line}
    assert restarted == {*COMMANDS, "redis"}


def test_every_approved_pair_was_used_exactly_once(finished):
    """Stream, ledger and manifests agree after all that."""
    with finished.fleet.redis() as redis:
        check = check_ledger(PairStream(redis, finished.lineage), ModelStore(finished.home / "models"))

    assert check.faults == []
    assert check.approved == check.used > 0
    assert (check.waiting, check.dead) == (0, 0)


def test_one_trace_goes_from_the_request_to_every_version(finished):
    """Over every kill: the job's request, its pairs, its training runs and what came of them have one id."""
    trace = trace_of(finished.record["traceparent"])
    with finished.fleet.redis() as redis:
        pairs = PairStream(redis, finished.lineage).entries().values()

    assert {pair.provenance.trace for pair in pairs} == {trace}
    assert {manifest.trace for manifest in ModelStore(finished.home / "models").manifests()} == {trace}


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
    report = finished.report
    stages = {stage["name"]: stage for stage in report["stages"]}

    assert list(stages) == ["base", "base_prompted", "cpt", "sft", "round-1", "round-2", "round-3", "control"]
    for stage in stages.values():
        for suite in ("seen", "held_out"):
            for language in ("zh", "en"):
                assert set(stage["attack_success"][suite][language]) == {"value", "low", "high", "n"}
    assert report["seconds"] > 0
    assert (finished.home / "report" / "index.html").stat().st_size > 10_000


def test_the_report_tells_how_each_round_was_worked_and_who_beats_whom(finished):
    """Every round's work, and the matrix of each Attacker's kept queries against each Actor."""
    report, lineage = finished.report, finished.lineage
    rounds = [stage["round"] for stage in report["stages"] if stage["name"].startswith("round-")]

    assert [one["work"]["actor"] != "" for one in rounds] == [True, True, True]
    assert report["matrix"]["attackers"] == [f"{lineage}-{one}" for one in ("attacker", "attacker-r1", "attacker-r2")]
    assert report["matrix"]["actors"] == [f"{lineage}-{one}" for one in ("sft", "r1", "r2", "r3")]


def test_the_campaign_has_a_row_for_every_round(finished):
    """With who played it, what came of it, how long it took, and what was played ahead."""
    rows = finished.api.get(f"/v1/campaigns/{finished.lineage}")["rounds"]
    rounds = rows[1:]
    work = [one["work"] for one in rounds]

    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    for one in work:
        assert one["attacker"] and one["actor"] and one["critic"] and one["steering"] and one["archive"]
        assert {"attack", "answer", "critique", "measure"} <= one["seconds"].keys()
    assert [one["pairs"]["kept"] for one in work] == [one["num_pairs"] for one in rounds]
    assert [one["num_ahead"] > 0 for one in work] == [False, True, True]


def test_the_archive_remembers_the_last_round(finished):
    """Every cell of the charter is in it, with what was tried there."""
    archive = finished.api.get(f"/v1/campaigns/{finished.lineage}/archive")

    assert archive["round"] == 3
    assert len(archive["cells"]) == 8  # 2 sub-domains, 2 tactics of the rounds, 2 languages
    assert sum(cell["tried"] for cell in archive["cells"].values()) > 0


def test_the_rounds_asked_for_every_kind_of_goal(finished):
    """A tactic laid over another, several turns, and harmless questions that look like an attack."""
    files = (finished.home / "lineages" / finished.lineage / "rounds").glob("**/attacks.json")
    rounds = [[attack["goal"] for attack in json.loads(file.read_text())] for file in files]
    goals = [goal for goals in rounds for goal in goals]
    kinds = Counter(kind for goal in goals for kind in ("modifiers", "claim") if goal.get(kind))

    assert kinds["modifiers"] and kinds["claim"], kinds
    assert max(goal.get("num_turns", 1) for goal in goals) >= 3


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
count = 2
num_goals = 8
num_samples = 2
max_tokens = 8
num_retries = 1
look_alike_share = 0.5
mutation_share = 0.3
composition_share = 0.3
multi_turn_share = 0.3
twin_share = 0.3
counterfactual_share = 0.3
overlap_share = 0.5
prompted = true

[rounds.critic]
precision = 0.8
abstain = 0.1

[rounds.preference]
num_anchor = 8
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[rounds.attacker]
num_rows = 8
optim = {{ learning_rate = 1e-3, batch_tokens = 2048, max_steps = 2 }}

[evaluation]
num_items = 4
max_tokens = 8
judge = "{judge}"
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
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_ready_made_model_goes_through_the_same_pipeline_with_adapters(finished):
    """Only the recipe differs: base from a folder, LoRA, and every version loads with plain peft. The gate follows a
    judge that had no part in it, the Critic of the other lineage."""
    model = random_qwen3(finished.home.parent / "qwen3")
    recipe = finished.home.parent / "recipes" / "micro-lora.toml"
    judge = f"{finished.lineage}-critic"
    recipe.write_text(LORA_RECIPE.format(model=model, judge=judge))
    job = finished.api.post("/v1/jobs", {"recipe": "micro-lora"})["id"]
    list(finished.api.events(job))
    record = finished.api.get(f"/v1/jobs/{job}")
    store, lineage = ModelStore(finished.home / "models"), (record.get("result") or {}).get("lineage")

    assert record["state"] == "succeeded", record["error"]
    manifest = store.manifest("actor", f"{lineage}-r1")
    assert (manifest.format, manifest.base) == ("adapter", f"actor/{lineage}-base")
    base = AutoModelForCausalLM.from_pretrained(store.path("actor", f"{lineage}-base"))
    assert PeftModel.from_pretrained(base, store.path("actor", manifest.name)).peft_config
    rows = finished.api.get(f"/v1/campaigns/{lineage}")["rounds"]
    assert [(row["judge"], row["gate"] is not None) for row in rows] == [(judge, True)] * 3
    rulings = finished.home / "lineages" / lineage / "rulings" / f"{judge}.jsonl"
    assert {json.loads(line)["outcome"] for line in rulings.read_text().splitlines()} <= {*Outcome}
