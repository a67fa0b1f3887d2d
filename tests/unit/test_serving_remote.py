"""Versions on an upstream server: found or loaded there, proven, let go of; and the upstream's metrics beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from services.actor.settings import ActorSettings
from tests.fake_upstream import FakeUpstream, whole
from tests.fakes import commit_model, temporary_store, tiny_causal, tiny_tokenizer
from tests.servers import free_port, serve
from vcllm.contracts.manifests import Probe
from vcllm.contracts.problems import BadRequest, NotFound, Unavailable
from vcllm.serving.proof import Refused
from vcllm.serving.remote import RemoteOpener
from vcllm.serving.upstream_metrics import UpstreamCollector
from vcllm.stores.models import ModelStore

PROBE = Probe(prompt="Who may speak?", text="Everyone may.")
CHAT, READ = "/v1/chat/completions", "/v1/completions"


class NoWeights:
    """Stands for an adapter: the upstream would read it, nobody here does."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")


class CodeInside:
    """An adapter whose configuration names a class to import."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text('{"parts": [{"auto_map": {"AutoModel": "x.Y"}}]}')


@pytest.fixture(scope="module")
def store() -> ModelStore:
    store, tokenizer = temporary_store(), tiny_tokenizer()
    commit_model(store, "actor", "base", tiny_causal(tokenizer), tokenizer, probes=[PROBE])
    commit_model(store, "actor", "tuned", NoWeights(), tokenizer, base="actor/base", probes=[PROBE])
    return store


@pytest.fixture
def fake() -> FakeUpstream:
    fake = FakeUpstream()
    fake.script(CHAT, whole("Everyone may."))
    return fake


@pytest.fixture
def url(fake: FakeUpstream) -> Iterator[str]:
    with serve(fake.app) as url:
        yield url


def opener(store: ModelStore, url: str, **settings: Any) -> RemoteOpener:
    options = {"upstream_models_root": "/models", "upstream_retries": 0, **settings}
    return RemoteOpener(store, "actor", ActorSettings(upstream_url=url, **options))


def test_an_adapter_is_loaded_proven_and_let_go_of(store: ModelStore, fake: FakeUpstream, url: str) -> None:
    """Under role and version, from the folder that has this very name in the store."""
    engine = opener(store, url).open("tuned")
    loaded = dict(fake.models)
    engine.close()

    assert loaded["actor/tuned"] == "/models/actor/tuned"
    assert "actor/tuned" not in fake.models
    [probe] = fake.asked(CHAT)
    assert (probe["model"], probe["temperature"], probe["max_tokens"]) == ("actor/tuned", 0.0, 32)


def test_an_adapter_that_is_loaded_already_is_taken_as_it_is(store: ModelStore, fake: FakeUpstream, url: str) -> None:
    """By another replica; but not when it came from elsewhere."""
    fake.models["actor/tuned"] = "/models/actor/tuned"
    opener(store, url).open("tuned")
    fake.models["actor/tuned"] = "/somewhere/else"

    with pytest.raises(Refused, match="already been loaded"):
        opener(store, url).open("tuned")


def test_an_adapter_that_says_otherwise_is_refused_and_unloaded(
    store: ModelStore, fake: FakeUpstream, url: str
) -> None:
    """Its recorded words are no near tie either."""
    fake.script(CHAT, whole("Nobody may."))
    fake.script(READ, reading(gap=3.0))

    with pytest.raises(Refused, match="manifest of actor/tuned says 'Everyone may.'"):
        opener(store, url).open("tuned")

    assert "actor/tuned" not in fake.models


def test_a_near_tie_is_no_reason_to_refuse(store: ModelStore, fake: FakeUpstream, url: str) -> None:
    """Another device's arithmetic may lead to another greedy text."""
    fake.script(CHAT, whole("Everyone might."))
    fake.script(READ, reading(gap=0.2))

    assert opener(store, url).open("tuned").model == "actor/tuned"


def reading(gap: float) -> Any:
    """Each token is `gap` behind the likeliest."""

    def read(body: dict[str, Any]) -> Response:
        length = len(body["prompt"][0])
        logprobs = {"token_logprobs": [None] + [-1.0 - gap] * length, "top_logprobs": [None] + [{"x": -1.0}] * length}
        return JSONResponse({"choices": [{"logprobs": logprobs}]})

    return read


@pytest.mark.parametrize(("name", "root"), [("base", "/x"), ("actor/base", "/x"), ("anything", "/models/actor/base")])
def test_full_weights_are_found_by_name_or_folder(
    name: str, root: str, store: ModelStore, fake: FakeUpstream, url: str
) -> None:
    fake.models = {name: root}

    assert opener(store, url).open("base").model == name


def test_full_weights_that_are_not_there_are_refused(store: ModelStore, fake: FakeUpstream, url: str) -> None:
    """With what is there instead."""
    fake.models = {"other": "/models/actor/other"}

    with pytest.raises(Refused, match="it serves other. Start one with it"):
        opener(store, url).open("base")


@pytest.mark.parametrize("settings", [{"upstream_dialect": "sglang"}, {"upstream_models_root": None}])
def test_who_takes_no_adapters_is_asked_for_none(
    settings: dict[str, Any], store: ModelStore, fake: FakeUpstream, url: str
) -> None:
    with pytest.raises(Refused, match="takes up none"):
        opener(store, url, **settings).open("tuned")

    assert fake.requests == []


def test_damaged_files_never_reach_the_upstream(fake: FakeUpstream, url: str) -> None:
    """They are hashed here first."""
    store = temporary_store()
    commit_model(store, "actor", "tuned", NoWeights(), tiny_tokenizer(), base="actor/base")
    (store.path("actor", "tuned") / "adapter_config.json").write_text('{"changed": 1}')

    with pytest.raises(Refused, match="does not match its manifest"):
        opener(store, url).open("tuned")

    assert fake.requests == []


@pytest.mark.parametrize(("name", "kind"), [("../../etc", BadRequest), ("none", NotFound)])
def test_a_name_leads_nowhere_but_into_the_store(
    name: str, kind: type[Exception], store: ModelStore, fake: FakeUpstream, url: str
) -> None:
    with pytest.raises(kind):
        opener(store, url).open(name)

    assert fake.requests == []


def test_what_names_code_of_its_own_never_reaches_the_upstream(fake: FakeUpstream, url: str) -> None:
    """However deep it stands in a configuration: the upstream would open it."""
    store = temporary_store()
    commit_model(store, "actor", "tuned", CodeInside(), tiny_tokenizer(), base="actor/base")

    with pytest.raises(Refused, match="asks for code of its own"):
        opener(store, url).open("tuned")

    assert fake.requests == []


def test_a_version_elsewhere_takes_no_memory_and_has_a_checksum(store: ModelStore) -> None:
    """Of our manifest; nobody knows which weights a hosted model's name stands for."""
    ours = opener(store, "http://127.0.0.1:9")
    hosted = opener(store, "http://127.0.0.1:9", upstream_model="Org/Hosted-1")

    assert ours.shortage("tuned", alone=False) is None
    assert ours.checksum("tuned") == store.checksum("actor", "tuned")
    assert hosted.checksum("Org/Hosted-1") == ""


def test_a_fixed_model_is_the_only_one(store: ModelStore, fake: FakeUpstream, url: str) -> None:
    """Under its own name; none of ours is asked for."""
    fixed = opener(store, url, upstream_model="Org/Hosted-1", upstream_dialect="openai")

    assert fixed.open("Org/Hosted-1").model == "Org/Hosted-1"
    with pytest.raises(NotFound):
        fixed.open("tuned")


def test_an_upstream_that_is_down_is_unavailable_not_refused(store: ModelStore) -> None:
    with pytest.raises(Unavailable):
        opener(store, f"http://127.0.0.1:{free_port()}").open("tuned")


def scraped(url: str) -> str:
    registry = CollectorRegistry()
    registry.register(UpstreamCollector(ActorSettings(upstream_url=url)))
    return generate_latest(registry).decode()


def test_the_upstreams_own_metrics_are_shown_and_no_others(fake: FakeUpstream, url: str) -> None:
    text = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model="b"} 2.0\nvc_inflight 7.0\n'
    fake.script("/metrics", PlainTextResponse(text))

    shown = scraped(url)

    assert 'vllm:num_requests_running{model="b"} 2.0' in shown
    assert "vc_upstream_up 1.0" in shown and "vc_inflight" not in shown


@pytest.mark.parametrize(
    "reply", [PlainTextResponse("no", 500), PlainTextResponse("{not metrics"), PlainTextResponse("x" * (5 << 20))]
)
def test_a_scrape_survives_an_upstream_that_fails(reply: Response, fake: FakeUpstream, url: str) -> None:
    fake.script("/metrics", reply)

    assert "vc_upstream_up 0.0" in scraped(url)


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://", "http://host?to=elsewhere"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="http://host:port"):
        ActorSettings(upstream_url=url)


def test_an_address_with_a_password_is_refused_and_not_shown() -> None:
    """Errors end in logs."""
    with pytest.raises(ValidationError, match="must hold no name or password") as raised:
        ActorSettings(upstream_url="http://me:canary@host:8000")

    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"]
)
def test_an_address_may_name_the_api_or_the_server(url: str) -> None:
    assert ActorSettings(upstream_url=url).upstream_url == "http://host:8000"
