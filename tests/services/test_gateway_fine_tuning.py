"""Fine-tuning jobs at the gateway: what is settled when one is made, and how it is shown. No trainer runs here."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from gateway.fine_tuning.checking import Turn
from tests.gateway_world import Gateway, add_version, error_of, sdk
from tests.services.test_gateway_files import CHAT, PREFERENCE, chats, jsonl
from vcllm.contracts.base import NAME_PATTERN, digest
from vcllm.contracts.fine_tuning import FineTune
from vcllm.contracts.jobs import JobState
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import Manifest
from vcllm.recipes import load_recipe
from vcllm.stores.aliases import AliasStore
from vcllm.stores.events import EventLog
from vcllm.stores.models import ModelStore, hash_files

DPO = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}}


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """The SDK over an empty store of files, with a version to start from."""
    shutil.rmtree(gateway.settings.home / "files", ignore_errors=True)
    add_version(gateway.settings, "line-sft")
    with sdk(gateway, Scope.ADMIN) as client:
        yield client


def upload(client: openai.OpenAI, content: bytes = jsonl(CHAT)) -> str:
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def asked(gateway: Gateway, job: str) -> FineTune:
    return FineTune.model_validate(gateway.jobs.get(job).request)


def test_a_job_is_stored_and_queued_with_everything_settled(gateway: Gateway, client: openai.OpenAI):
    """On the training queue, as one of our own jobs; its reply is the SDK's, and says that nothing is promoted."""
    AliasStore(gateway.redis).promote("actor", "line-sft")
    file = upload(client, chats(50))
    job = client.fine_tuning.jobs.create(
        model="vc-llm", training_file=file, suffix="My Model", seed=7, metadata={"team": "blue"}
    )

    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", "line-sft", 7)
    assert (job.training_file, job.fine_tuned_model, job.error, job.metadata) == (file, None, None, {"team": "blue"})
    assert (job.vc_status, "Not promoted" in job.vc_note) == ("queued", True)
    assert job.method.type == "supervised"
    assert job.hyperparameters.n_epochs == 3
    assert job.hyperparameters.learning_rate_multiplier == 1.0
    assert gateway.redis.llen("training") == 1
    order = asked(gateway, job.id).order
    assert order.parent == "actor/line-sft"
    assert order.version == f"line-ft-{job.id[-8:]}-my-model"
    assert order.lineage == f"line-ft-{job.id[-8:]}"
    assert gateway[Scope.JOBS_READ].get(f"/v1/jobs/{job.id}").json()["kind"] == "fine_tune"
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_auto_is_what_the_recipe_of_the_lineage_says(gateway: Gateway, client: openai.OpenAI):
    """Its rates, its adapter, its base; what a request names is taken relative to them."""
    recipe = load_recipe(gateway.settings.recipes, "tiny")
    store = ModelStore(gateway.settings.models)
    staged = store.staging("actor", "tiny-base")
    (staged / "model.safetensors").write_bytes(b"x")
    facts: dict[str, Any] = {"lineage": "tiny-s0", "stage": "sft", "format": "full", "recipe": {}, "charter": "c"}
    facts |= {"dataset": "d", "token": 1, "job": "job-1", "created": 1.0}
    facts["recipe_hash"] = digest(recipe.model_dump(mode="json"))
    store.commit(staged, Manifest(role="actor", name="tiny-base", files=hash_files(staged), **facts))

    plain = client.fine_tuning.jobs.create(model="tiny-base", training_file=upload(client))
    tuned = client.fine_tuning.jobs.create(
        model="tiny-base",
        training_file=upload(client, jsonl(PREFERENCE)),
        method={"type": "dpo", "dpo": {"hyperparameters": {"learning_rate_multiplier": 3, "n_epochs": 2}}},
    )

    sft, dpo = (asked(gateway, job.id).order for job in (plain, tuned))
    assert (sft.recipe, sft.base, sft.stage) == ("tiny", recipe.base, recipe.sft)
    assert dpo.stage.optim.learning_rate == pytest.approx(3e-4)
    assert (dpo.stage.optim.epochs, dpo.stage.beta) == (2.0, recipe.rounds.preference.beta)
    assert tuned.method.dpo.hyperparameters.learning_rate_multiplier == 3.0


@pytest.mark.parametrize("suffix", [None, "a" * 64, "x.y_z-", "A B C", "9"])
@pytest.mark.parametrize("parent", ["line-sft", "l" + "o" * 62])
def test_names_are_always_names(gateway: Gateway, client: openai.OpenAI, suffix: str | None, parent: str):
    """Whatever suffix and parent, version and lineage fit everywhere; a child's child is not named ever longer."""
    if parent != "line-sft":
        add_version(gateway.settings, parent)
    job = client.fine_tuning.jobs.create(model=parent, training_file=upload(client), suffix=suffix)

    order = asked(gateway, job.id).order
    assert re.fullmatch(NAME_PATTERN, order.version)
    assert re.fullmatch(NAME_PATTERN, order.lineage)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "nobody"}, "model", "model_not_found"),
        ({"model": "../../etc"}, "model", "model_not_found"),
        ({"model": "vc-llm"}, "model", "model_not_found"),
        ({"training_file": "file-" + "0" * 24}, "training_file", "not_found"),
        ({"training_file": "../../etc/passwd"}, "training_file", "not_found"),
        ({"validation_file": "file-" + "0" * 24}, "validation_file", "unsupported_parameter"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "unsupported_parameter"),
        ({"method": {"type": "reinforcement"}}, "method.type", "literal_error"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method", "value_error"),
        ({"method": DPO, "hyperparameters": {"n_epochs": 2}}, "hyperparameters", "value_error"),
        ({"hyperparameters": {"n_epochs": 0}}, None, None),
        ({"hyperparameters": {"learning_rate_multiplier": -1}}, None, None),
        ({"hyperparameters": {"learning_rate_multiplier": 1e-320}}, None, None),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "extra_forbidden"),
        ({"suffix": "../up"}, "suffix", "string_pattern_mismatch"),
        ({"suffix": "x" * 65}, "suffix", None),
        ({"seed": -1}, "seed", None),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", None),
        ({"training_url": "http://127.0.0.1/"}, "training_url", "extra_forbidden"),
    ],
)
def test_a_wrong_job_is_refused_by_name(
    gateway: Gateway, client: openai.OpenAI, fields: dict[str, Any], param: str | None, code: str | None
):
    """And nothing is stored of it."""
    body = {"model": "line-sft", "training_file": upload(client), **fields}
    reply = gateway[Scope.JOBS_WRITE].post("/v1/fine_tuning/jobs", json=body)

    error = error_of(reply, 404 if code in ("model_not_found", "not_found") else 400)
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code
    assert gateway.jobs.recent() == []


def test_a_file_is_checked_for_the_method(gateway: Gateway, client: openai.OpenAI):
    """Preferences are no instruction data, and are told line by line; instruction data may stand beside preferences."""
    preferences, plain = upload(client, jsonl(PREFERENCE, PREFERENCE)), upload(client)

    with pytest.raises(openai.BadRequestError, match="line 1: stage 'sft' takes chats"):
        client.fine_tuning.jobs.create(model="line-sft", training_file=preferences)

    assert client.fine_tuning.jobs.create(model="line-sft", training_file=preferences, method=DPO).status == "queued"
    assert client.fine_tuning.jobs.create(model="line-sft", training_file=plain, method=DPO).status == "queued"


def test_a_file_is_read_once_for_jobs_that_ask_at_once(
    gateway: Gateway, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
):
    """Those that waited for their turn find what the first one found; each once read the file again."""
    plain, check, read = upload(client), Turn.check, []

    def read_slowly(turn: Turn, *asked: Any) -> Any:
        read.append(asked)
        time.sleep(0.3)
        return check(turn, *asked)

    monkeypatch.setattr(Turn, "check", read_slowly)
    with ThreadPoolExecutor(5) as pool:
        asked = [
            pool.submit(client.fine_tuning.jobs.create, model="line-sft", training_file=plain, method=DPO)
            for _ in range(5)
        ]

    assert [one.result().status for one in asked] == ["queued"] * 5
    assert len(read) == 1


@pytest.mark.parametrize(
    ("state", "progress", "shown"),
    [
        (JobState.RUNNING, {}, "validating_files"),
        (JobState.RUNNING, {"dataset": "d"}, "running"),
        (JobState.RUNNING, {"step": 3, "eta_s": 60}, "running"),
        (JobState.PAUSING, {"step": 3}, "running"),
        (JobState.PAUSED, {"step": 3}, "queued"),
        (JobState.CANCELLING, {}, "running"),
        (JobState.CANCELLED, {}, "cancelled"),
        (JobState.SUCCEEDED, {}, "succeeded"),
        (JobState.FAILED, {}, "failed"),
    ],
)
def test_a_state_is_shown_in_the_words_of_the_api(
    gateway: Gateway, client: openai.OpenAI, state: JobState, progress: dict[str, Any], shown: str
):
    """And in our own beside it."""
    job = client.fine_tuning.jobs.create(model="line-sft", training_file=upload(client))
    gateway.jobs._update(
        job.id,
        lambda record: record.model_copy(
            update={"state": state, "progress": progress, "error": "No memory.", "error_code": None}
        ),
        None,
    )

    seen = client.fine_tuning.jobs.retrieve(job.id)

    assert (seen.status, seen.vc_status, seen.vc_progress) == (shown, state.value, progress)
    assert (seen.error is not None) == (state is JobState.FAILED)
    assert (seen.fine_tuned_model is not None) == (state is JobState.SUCCEEDED)
    assert (seen.estimated_finish is not None) == ("eta_s" in progress)


def test_a_job_is_paused_resumed_and_cancelled(gateway: Gateway, client: openai.OpenAI):
    """As any job of ours."""
    job = client.fine_tuning.jobs.create(model="line-sft", training_file=upload(client))

    assert client.fine_tuning.jobs.pause(job.id).vc_status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).vc_status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.resume(job.id)
    assert [event.message for event in client.fine_tuning.jobs.list_events(job.id)] == [
        "The job is cancelled.",
        "The job is queued.",
        "The job is paused.",
        "The job is queued.",
    ]


def test_other_jobs_are_none_of_the_apis(gateway: Gateway, client: openai.OpenAI):
    """A pipeline is not shown, nor steered, as a fine-tuning job."""
    pipeline = gateway[Scope.JOBS_WRITE].post("/v1/jobs", json={"recipe": "tiny"}).json()["id"]

    for call in (client.fine_tuning.jobs.retrieve, client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError):
            call(pipeline)
    assert list(client.fine_tuning.jobs.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list(after=pipeline)


def test_events_are_paged_from_the_newest(gateway: Gateway, client: openai.OpenAI):
    """The SDK walks all pages by itself; each event comes once, also when others are appended meanwhile."""
    job = client.fine_tuning.jobs.create(model="line-sft", training_file=upload(client))
    log = EventLog(gateway.redis)
    for step in range(1, 31):
        log.append(job.id, "progress", step=step, steps=30, loss=1 / step)

    steps = []
    for event in client.fine_tuning.jobs.list_events(job.id, limit=4):
        if event.type == "metrics":
            steps.append(event.data["step"])
            log.append(job.id, "log", message="more")

    assert steps == list(range(30, 0, -1))


def test_jobs_are_paged_from_the_newest(gateway: Gateway, client: openai.OpenAI):
    """By the id of the last one; metadata chooses among them."""
    file = upload(client)
    made = [
        client.fine_tuning.jobs.create(model="line-sft", training_file=file, metadata={"odd": str(n % 2)}).id
        for n in range(5)
    ]

    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1, metadata={"odd": "1"})] == [made[3], made[1]]
    assert client.fine_tuning.jobs.checkpoints.list(made[0]).data == []


def test_a_chat_key_sees_nothing_of_it(gateway: Gateway, client: openai.OpenAI):
    """Reading needs jobs:read, everything else jobs:write."""
    job = client.fine_tuning.jobs.create(model="line-sft", training_file=upload(client)).id
    path = f"/v1/fine_tuning/jobs/{job}"

    for action in ("cancel", "pause", "resume"):
        error_of(gateway[Scope.JOBS_READ].post(f"{path}/{action}"), 403)
    for suffix in ("", "/events", "/checkpoints"):
        assert gateway[Scope.JOBS_READ].get(path + suffix).status_code == 200
        error_of(gateway[Scope.CHAT].get(path + suffix), 403)


def test_one_key_makes_one_fine_tuning_job(gateway: Gateway, client: openai.OpenAI):
    """The SDK's own requests have none; who sends one may repeat it."""
    file, headers = upload(client), {"Idempotency-Key": "once"}

    first, again = (
        client.fine_tuning.jobs.create(model="line-sft", training_file=file, extra_headers=headers) for _ in range(2)
    )

    assert first.id == again.id
    assert gateway.redis.llen("training") == 1
    with pytest.raises(openai.UnprocessableEntityError):
        client.fine_tuning.jobs.create(model="line-sft", training_file=file, seed=1, extra_headers=headers)
