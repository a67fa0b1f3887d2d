"""No key of the public door leads to what writes attacks, nor to its weights."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from redis import Redis

from gateway.app import create_app
from gateway.auth import scopes_by_route
from services.attacker.app import create_app as create_attacker
from services.attacker.settings import AttackerSettings
from tests.fake_actor import FakeActor
from tests.fake_upstream import FakeUpstream
from tests.gateway_world import PEPPER, Gateway, add_version, chat_body, gateway_on
from tests.servers import RedisServer, serve
from tests.service_tokens import ServiceAuth
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import Manifest
from vcllm.settings import Settings
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.models import ModelStore, hash_files
from vcllm.web.tokens import Signer

TOKEN = "internal"
ATTACKS = {"goals": [], "model": "vc-llm"}
WEIGHTS = b"weights that nobody outside may have"


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[str]:
    """A real Attacker whose model is hosted; it need not be ready to refuse."""
    home = tmp_path_factory.mktemp("attacker")
    shared = Settings(home=home, redis_url=redis_server.url, internal_token=SecretStr(TOKEN))
    with serve(FakeUpstream().app) as upstream:
        server = AttackerSettings(upstream_url=upstream, upstream_model="Org/Attacker-1", upstream_retries=0)
        with serve(create_attacker(server, shared)) as url:
            yield url


def asked(url: str, header: str) -> int:
    return httpx.post(f"{url}/v1/attacks", json=ATTACKS, headers={"authorization": header}, timeout=10).status_code


def test_a_user_does_not_get_at_the_attacker(attacker: str, redis_url: str):
    """With a key of whatever scope: the Attacker does not know keys."""
    with httpx.Client(base_url=attacker) as client:
        assert client.post("/v1/attacks", json=ATTACKS).status_code == 401
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        for scope in Scope:
            key, _ = KeyStore(redis, PEPPER).create("user", [scope])
            assert asked(attacker, f"Bearer {key}") == 401


def test_the_gateway_does_not_get_at_the_attacker(attacker: str):
    """Neither with what it sends to Actors, nor with a token for the Attacker; the trainer does."""
    gateway, trainer = Signer(SecretStr(TOKEN), "gateway"), Signer(SecretStr(TOKEN), "trainer")

    assert asked(attacker, gateway.header("actor")) == 401
    assert asked(attacker, gateway.header("attacker")) == 403
    assert asked(attacker, trainer.header("actor")) == 401
    assert asked(attacker, f"Bearer {TOKEN}") == 401
    assert asked(attacker, trainer.header("attacker")) == 400  # let in; it says what is wrong with no goals


def test_a_gateway_that_is_pointed_at_the_attacker_cannot_use_it(attacker: str, redis_url: str, tmp_path: Path):
    """A slip in `VCLLM_ACTOR_URLS` is told to the operator and shows no user an attack."""
    with gateway_on(redis_url, tmp_path, FakeActor()) as gateway:
        settings = gateway.settings.model_copy(update={"actor_urls": attacker})
        with serve(create_app(settings)) as url:
            reply = httpx.post(
                f"{url}/v1/chat/completions", json=chat_body(), headers=gateway[Scope.CHAT].headers, timeout=10
            )

    assert reply.status_code >= 400
    assert "choices" not in reply.text


@contextmanager
def listening() -> Iterator[tuple[str, list[int]]]:
    """An address that counts who connects to it."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def count() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                calls.append(1)
                connection.close()

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def add_attacker(settings: Settings, name: str) -> None:
    store = ModelStore(settings.models)
    staged = store.staging("attacker", name)
    (staged / "model.safetensors").write_bytes(WEIGHTS)
    facts = {"lineage": "line", "stage": "attacker", "format": "full", "recipe": {}, "recipe_hash": "r"}
    facts |= {"charter": "c", "dataset": "d", "token": 1, "job": "job-1", "created": 1.0}
    store.commit(staged, Manifest(role="attacker", name=name, files=hash_files(staged), **facts))  # type: ignore[arg-type]


def test_no_route_of_the_gateway_reaches_attacker_or_weights(redis_url: str, tmp_path: Path):
    """All are called, with a chat key and with one that may do everything, also by ways out of their folder."""
    with listening() as (address, calls), gateway_on(redis_url, tmp_path, FakeActor()) as gateway:
        settings = gateway.settings.model_copy(update={"attacker_urls": address})
        add_attacker(settings, "attacker-1")
        add_version(settings, "actor-1")
        with serve(create_app(settings)) as url:
            found = [
                reply for scope in (Scope.CHAT, Scope.ADMIN) for reply in everything(url, settings, gateway, scope)
            ]

    assert len(found) > 100
    assert all(WEIGHTS not in reply.content for reply in found)
    assert not calls


def everything(url: str, settings: Settings, gateway: Gateway, scope: Scope) -> Iterator[httpx.Response]:
    names = (
        "attacker-1",
        "actor-1",
        "..%2Fattacker%2Fattacker-1",
        "attacker%2Fattacker-1%2Fmodel.safetensors",
        "attacker",
    )
    with httpx.Client(base_url=url, headers=gateway[scope].headers, timeout=10) as client:
        for route in scopes_by_route(create_app(settings)):
            methods, path = route.split()
            for name in names:
                filled = "/".join(name if part.startswith("{") else part for part in path.split("/"))
                for method in methods.split("/"):
                    yield client.request(method, filled, json={})
        for path in ("/v1/models/../../attacker/attacker-1/model.safetensors", "/v1/attacks", "/attacker", "/static"):
            yield client.get(path)


def test_a_chat_key_cannot_name_an_attacker(redis_url: str, tmp_path: Path):
    """Its versions are no models of the chat API."""
    with gateway_on(redis_url, tmp_path, FakeActor()) as gateway:
        add_attacker(gateway.settings, "attacker-1")
        reply = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(model="attacker-1"))
        listed = gateway[Scope.PROMOTE].get("/v1/models").text + gateway[Scope.CHAT].get("/v1/models").text

    assert reply.status_code == 404
    assert gateway.actor.seen == []
    assert "attacker-1" not in listed


def test_metrics_of_the_attacker_are_for_the_scraper(attacker: str):
    """Health is for everybody; nothing else is."""
    with httpx.Client(base_url=attacker, auth=ServiceAuth(TOKEN, "attacker")) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/health/live").status_code == 200
