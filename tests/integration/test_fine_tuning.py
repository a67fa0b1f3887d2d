"""The `openai` SDK fine-tunes: a real gateway, real Celery workers, real training runs of a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.fake_actor import FakeActor
from tests.fakes import add_version
from tests.integration.bench import PATIENCE_S, Bench, open_bench
from tests.servers import serve, wait_until
from vcllm.contracts.keys import Scope
from vcllm.evaluation.bench.load import held_out_questions
from vcllm.stores.api_keys import KeyStore

pytestmark = pytest.mark.slow

PEPPER = SecretStr("pepper")
WORDS = ["council", "valley", "river", "fair", "people", "speak", "turn", "everyone", "asked", "differ"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("tuning")) as opened:
        add_version(opened.store, "actor", "tiny-sft")
        yield opened


@pytest.fixture(scope="module")
def client(bench: Bench) -> Iterator[openai.OpenAI]:
    """The SDK as it is, with a key that may write jobs and promote."""
    recipes = bench.folder / "recipes"
    recipes.mkdir()
    with serve(FakeActor().app) as actor:
        settings = bench.settings.model_copy(
            update={
                "recipes": recipes,
                "actor_urls": actor,
                "internal_token": SecretStr("internal"),
                "pepper": PEPPER,
            }
        )
        scopes = [Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.PROMOTE, Scope.CHAT]
        key, _ = KeyStore(bench.redis, PEPPER).create("tuner", scopes)
        with (
            serve(create_app(settings, GatewaySettings(alias_ttl_s=0))) as url,
            closing(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)) as client,
        ):
            yield client


def sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(3, 9)))


def chats(count: int) -> bytes:
    chance = random.Random(3)
    turns = [{"role": "user"}, {"role": "assistant"}]
    rows = [{"messages": [turn | {"content": sentence(chance)} for turn in turns]} for _ in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def preferences(count: int) -> bytes:
    chance = random.Random(4)
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": sentence(chance)}]},
            "preferred_output": [{"role": "assistant", "content": sentence(chance) + "."}],
            "non_preferred_output": [{"role": "assistant", "content": sentence(chance) + "!"}],
        }
        for _ in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def finished(client: openai.OpenAI, job: str) -> Any:
    def is_over() -> bool:
        return client.fine_tuning.jobs.retrieve(job).status in ("succeeded", "failed", "cancelled")

    wait_until(is_over, PATIENCE_S)
    return client.fine_tuning.jobs.retrieve(job)


def test_a_model_is_fine_tuned_and_what_came_of_it_by_preferences(bench: Bench, client: openai.OpenAI):
    """Supervised, then DPO from its result: both versions are whole, know their parents, and are served to nobody."""
    bench.idle_workers()
    supervised = client.fine_tuning.jobs.create(
        model="tiny-sft",
        training_file=upload(client, chats(40)),
        suffix="Town Hall",
        seed=5,
        metadata={"team": "blue"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 2.0}},
        },
    )
    first = finished(client, supervised.id)
    assert (first.status, first.error) == ("succeeded", None)
    dpo = client.fine_tuning.jobs.create(
        model=first.fine_tuned_model,
        training_file=upload(client, preferences(24)),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": "auto"}}},
    )
    second = finished(client, dpo.id)
    assert (second.status, second.error) == ("succeeded", None)

    for job, parent, stage in ((first, "tiny-sft", "sft"), (second, first.fine_tuned_model, "preference")):
        manifest = bench.store.verify("actor", job.fine_tuned_model)
        assert (manifest.stage, manifest.parent, manifest.job) == (stage, f"actor/{parent}", job.id)
        assert job.trained_tokens > 0
        assert "Not promoted" in job.vc_note
    assert first.fine_tuned_model.endswith("-town-hall")
    manifest = bench.store.manifest("actor", first.fine_tuned_model)
    assert manifest.recipe["optim"]["epochs"] == 2
    assert manifest.recipe["optim"]["learning_rate"] == pytest.approx(2e-5)
    assert [probe.prompt for probe in manifest.probes] == [
        probe.prompt for probe in bench.store.manifest("actor", "tiny-sft").probes
    ]
    assert bench.store.manifest("actor", second.fine_tuned_model).recipe["beta"] == 0.2
    assert client.models.list().data != []
    assert bench.redis.hgetall("vcllm:aliases:actor") == {}

    events = list(client.fine_tuning.jobs.list_events(first.id, limit=3))
    assert [event.message for event in events[-3:]] == [
        "The training file was taken in: 40 rows.",
        "The job is running.",
        "The job is queued.",
    ]
    assert events[0].message == "The job is succeeded."
    assert any(event.type == "metrics" and event.data["train_loss"] > 0 for event in events)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(first.id)
    assert checkpoint.fine_tuned_model_checkpoint == first.fine_tuned_model
    assert checkpoint.step_number == manifest.metrics["steps"]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == [second.id, first.id]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "blue"})] == [first.id]


def test_a_file_that_quotes_the_evaluation_is_not_trained_on(bench: Bench, client: openai.OpenAI):
    """The job fails and says in which line; no version comes of it."""
    bench.idle_workers()
    question = next(text for item, text in held_out_questions() if item.endswith("-en"))
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Because."}]
    leak = json.dumps({"messages": turns}).encode() + b"\n"
    job = client.fine_tuning.jobs.create(model="tiny-sft", training_file=upload(client, chats(5) + leak))

    failed = finished(client, job.id)

    assert failed.status == "failed"
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert "line 6" in failed.error.message
    assert failed.fine_tuned_model is None


def test_a_job_is_paused_resumed_and_cancelled(bench: Bench, client: openai.OpenAI):
    """Stopped at a checkpoint, on its way again, ended; its file can be deleted once it has."""
    bench.idle_workers()
    file = upload(client, chats(60))
    job = client.fine_tuning.jobs.create(
        model="tiny-sft",
        training_file=file,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 200, "batch_size": 4}}},
    )
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).vc_progress.get("step"), PATIENCE_S)
    client.fine_tuning.jobs.pause(job.id)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).vc_status == "paused", PATIENCE_S)
    paused = client.fine_tuning.jobs.retrieve(job.id)
    checkpoints = client.get(f"/jobs/{job.id}/checkpoints", cast_to=dict)["data"]
    with pytest.raises(openai.ConflictError):
        client.files.delete(file)

    client.fine_tuning.jobs.resume(job.id)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", PATIENCE_S)
    assert client.fine_tuning.jobs.cancel(job.id).vc_status == "cancelling"
    assert finished(client, job.id).status == "cancelled"

    assert paused.status == "queued"
    assert checkpoints[-1]["step"] > 0
    assert not checkpoints[-1]["committed"]
    assert client.files.delete(file).deleted


def test_a_killed_worker_costs_a_job_what_came_after_its_checkpoint(bench: Bench, client: openai.OpenAI):
    """Another worker goes on from there, on the rows as they were taken in the first time."""
    bench.idle_workers()
    job = client.fine_tuning.jobs.create(
        model="tiny-sft",
        training_file=upload(client, chats(60)),
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 60, "batch_size": 4}}},
    )
    wait_until(lambda: bench.steps(job.id), PATIENCE_S)
    client.fine_tuning.jobs.pause(job.id)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).vc_status == "paused", PATIENCE_S)
    saved = client.get(f"/jobs/{job.id}/checkpoints", cast_to=dict)["data"][-1]["step"]
    client.fine_tuning.jobs.resume(job.id)
    wait_until(lambda: bench.steps(job.id)[-1] > saved, PATIENCE_S)
    (worker,) = [worker for worker in bench.workers if worker.training()]
    worker.process.kill()
    before = len(bench.steps(job.id))

    done = finished(client, job.id)

    assert (done.status, done.error) == ("succeeded", None)
    assert bench.jobs.get(job.id).attempt == 2
    assert bench.states(job.id)[-3:] == ["queued", "running", "succeeded"]
    after = bench.steps(job.id)[before:]
    assert after[0] > saved
    manifest = bench.store.verify("actor", done.fine_tuned_model)
    assert manifest.metrics["steps"] == after[-1]
    assert [event.type for event in bench.events.read(job.id, limit=10_000)].count("data") == 1
