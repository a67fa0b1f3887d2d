"""Every route of every service, really asked: open to nobody without a right, whatever else they may do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

import services.actor.app
import services.attacker.app
import services.critic.app
from gateway.app import create_app
from gateway.auth import OPEN_PATHS, scopes_by_route
from services.actor.settings import ActorSettings
from services.attacker.settings import AttackerSettings
from services.critic.settings import CriticSettings
from tests.gateway_world import Gateway, error_of
from tests.raw_http import ask
from tests.servers import RedisServer, serve
from tests.service_tokens import ServiceAuth
from vcllm.contracts.keys import Scope
from vcllm.settings import Settings
from vcllm.web.tokens import scrape_token

TOKEN = "internal"
ROLES: dict[str, Callable[[Settings], FastAPI]] = {
    "attacker": lambda shared: services.attacker.app.create_app(AttackerSettings(), shared),
    "actor": lambda shared: services.actor.app.create_app(ActorSettings(), shared),
    "critic": lambda shared: services.critic.app.create_app(CriticSettings(), shared),
}


class Door(NamedTuple):
    method: str
    path: str
    scopes: frozenset[str]


def doors(app: FastAPI) -> list[Door]:
    """Every route but health, with its path's names in place of their values."""
    found = []
    for route, scopes in scopes_by_route(app).items():
        methods, path = route.split()
        if path not in OPEN_PATHS:
            plain = path.replace("{", "").replace("}", "").replace(":path", "")
            found += [Door(method, plain, frozenset(scopes)) for method in methods.split("/")]
    return found


# The gateway


def test_no_route_of_the_gateway_opens_without_a_key(gateway: Gateway):
    """Not without one, not with what other services accept, and the reply says how to get in."""
    app = create_app(gateway.settings)
    role = ServiceAuth(TOKEN, "actor", issuer="gateway")
    wrong = [{}, {"authorization": f"Bearer {TOKEN}"}, {"authorization": f"Bearer {role.token}"}]

    assert len(doors(app)) > 25
    for door in doors(app):
        for headers in wrong:
            reply = gateway[None].request(door.method, door.path, json={}, headers=headers)
            assert error_of(reply, 401)["code"] == "invalid_api_key", door
            assert reply.headers["www-authenticate"] == "Bearer"


def test_a_stranger_makes_the_gateway_receive_nothing(gateway: Gateway):
    """The refusal comes before the body, which never does; so it is with a key that lacks the scope."""
    allowed_nothing_here = gateway[Scope.REVIEW].headers["authorization"].encode()
    tried = 0
    for door in doors(create_app(gateway.settings)):
        if door.method == "GET" or Scope.REVIEW in door.scopes:
            continue
        for headers, status in (((), 401), ((b"authorization: " + allowed_nothing_here,), 403)):
            begun = time.monotonic()
            line = f"{door.method} {door.path}".encode()
            answer = ask(gateway.url, line, b"content-type: application/json", *headers, length=1000)
            assert answer.status == status, door
            assert time.monotonic() - begun < 2, door
            tried += 1

    assert tried > 30


def test_no_route_of_the_gateway_opens_to_another_scope(gateway: Gateway):
    """Each route against each scope that it does not ask for; no scope implies another, but admin all."""
    tried = 0
    for door in doors(create_app(gateway.settings)):
        for scope in set(Scope) - door.scopes - {Scope.ADMIN}:
            reply = gateway[scope].request(door.method, door.path, json={})
            assert error_of(reply, 403)["code"] == "insufficient_scope", (door, scope)
            tried += 1

    assert tried > 150


def test_every_route_of_the_gateway_opens_to_its_scope(gateway: Gateway):
    """What is refused then is the request, not the key: the test above refuses for the reason it says."""
    for door in doors(create_app(gateway.settings)):
        (scope,) = door.scopes
        reply = gateway[Scope(scope)].request(door.method, door.path, json={})
        assert reply.status_code not in (401, 403), (door, reply.text)
        assert reply.status_code < 500, (door, reply.text)


def test_what_is_not_there_tells_nothing(gateway: Gateway):
    """No description of the API and no debug route, with a key and without."""
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/config", "/v1", "/v1/keys/", "//v1/keys", "/health"):
        for scope in (None, Scope.ADMIN):
            error_of(gateway[scope].get(path), 404)


# The model servers


@pytest.fixture(scope="module")
def shared(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home: Path = tmp_path_factory.mktemp("roles")
    return Settings(home=home, redis_url=redis_server.url, internal_token=SecretStr(TOKEN))


@pytest.fixture(scope="module", params=ROLES)
def role(request: pytest.FixtureRequest, shared: Settings) -> Iterator[tuple[str, FastAPI, httpx.Client]]:
    """A model server without a model: who may ask is decided before that."""
    app = ROLES[request.param](shared)
    with ExitStack() as stack:
        url = stack.enter_context(serve(app))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=10))
        yield request.param, app, client


def refused(reply: httpx.Response) -> bool:
    return reply.status_code in (401, 403) and "error" in reply.json()


def test_no_route_of_a_model_server_opens_to_a_stranger(role: Any):
    """Not without a token, nor with an API key, a token for another role, or another installation's."""
    name, app, client = role
    other = "critic" if name != "critic" else "actor"
    strangers = [
        {},
        {"authorization": "Bearer vck_00000000_" + "a" * 43},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {ServiceAuth(TOKEN, other).token}"},
        {"authorization": f"Bearer {ServiceAuth('other installation', name).token}"},
    ]

    assert {door.path for door in doors(app)} > {"/metrics"}
    for door in doors(app):
        for headers in strangers:
            assert refused(client.request(door.method, door.path, json={}, headers=headers)), (door, headers)


def test_a_model_server_is_not_opened_by_the_secret_itself(role: Any):
    """The internal token is what tokens are signed with, not one of them; the scrape token reads metrics, no more."""
    _, app, client = role
    scraper = scrape_token(SecretStr(TOKEN))
    for secret in (TOKEN, scraper):
        for door in doors(app):
            reply = client.request(door.method, door.path, json={}, headers={"authorization": f"Bearer {secret}"})
            assert refused(reply) is not (door.path == "/metrics" and secret == scraper), door


def test_a_model_server_opens_to_the_trainer(role: Any):
    """So the tests above refuse for the reason they say."""
    name, app, client = role
    for door in doors(app):
        reply = client.request(door.method, door.path, json={}, auth=ServiceAuth(TOKEN, name))
        assert not refused(reply), (door, reply.text)


def test_the_attacker_does_not_answer_the_gateway(role: Any):
    """Whatever a public request makes the gateway do, it does not reach what writes attacks."""
    name, app, client = role
    for door in doors(app):
        if door.path == "/metrics":
            continue
        auth = ServiceAuth(TOKEN, name, issuer="gateway")
        assert refused(client.request(door.method, door.path, json={}, auth=auth)) is (name == "attacker"), door
