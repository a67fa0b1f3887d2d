"""Browsers at the gateway: no page may call it unless its origin is named, and no reply is kept or guessed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from gateway.app import create_app
from gateway.auth import scopes_by_route
from gateway.settings import GatewaySettings
from tests.fake_actor import FakeActor
from tests.gateway_world import Gateway, chat_body, error_of, gateway_on
from tests.servers import RedisServer
from vcllm.contracts.keys import Scope

HOME = "https://console.example.org"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
SLY = [
    "https://console.example.org.attacker.test",
    "https://attacker.test/console.example.org",
    "http://console.example.org",
    "https://console.example.org:8443",
    "https://CONSOLE.example.org",
    "null",
    "*",
]


def cors(reply: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


@pytest.fixture(scope="module")
def known(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that pages of one origin may call, and that answers to two names."""
    limits = GatewaySettings(cors_origins=f"{HOME}, http://localhost:3000", allowed_hosts="127.0.0.1,*.example.org")
    home: Path = tmp_path_factory.mktemp("home")
    with gateway_on(redis_server.url, home, FakeActor(), limits=limits) as running:
        yield running


@pytest.mark.parametrize("origin", [HOME, "null", "http://localhost:3000"])
def test_no_page_may_call_by_default(gateway: Gateway, origin: str):
    """Neither is a preflight answered nor an origin named; the browser then hides the reply."""
    preflight = gateway[None].options("/v1/chat/completions", headers={"origin": origin, **PREFLIGHT})
    reply = gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(), headers={"origin": origin})

    assert preflight.status_code == 405
    assert cors(preflight) == cors(reply) == {}


def test_a_named_origin_may_call(known: Gateway):
    """With any header its SDK sends and without cookies; it may read limits, ids and versions."""
    known.reset()
    preflight = known[None].options("/v1/chat/completions", headers={"origin": HOME, **PREFLIGHT})
    reply = known[Scope.CHAT].post("/v1/chat/completions", json=chat_body(), headers={"origin": HOME})

    assert preflight.status_code == 200
    assert cors(preflight)["access-control-allow-origin"] == HOME
    assert "x-stainless-os" in cors(preflight)["access-control-allow-headers"]
    assert reply.status_code == 200
    assert cors(reply)["access-control-allow-origin"] == HOME
    assert "x-vc-version" in cors(reply)["access-control-expose-headers"]
    assert "origin" in reply.headers["vary"].lower()
    assert "access-control-allow-credentials" not in cors(reply) | cors(preflight)


def test_a_named_origin_may_use_every_route(known: Gateway):
    """Whatever its method is: a preflight that is refused would keep a page from a route that its key may use."""
    methods = {route.split()[0] for route in scopes_by_route(create_app(known.settings))}
    asked = {method for each in methods for method in each.split("/")}
    for method in asked:
        headers = {"origin": HOME, **PREFLIGHT, "access-control-request-method": method}
        assert known[None].options("/v1/keys/k", headers=headers).status_code == 200, method

    assert asked == {"GET", "POST", "PUT", "PATCH", "DELETE"}


@pytest.mark.parametrize("origin", SLY)
def test_an_origin_that_only_looks_alike_may_not(known: Gateway, origin: str):
    """It is never said back, whatever else is answered."""
    known.reset()
    preflight = known[None].options("/v1/chat/completions", headers={"origin": origin, **PREFLIGHT})
    reply = known[Scope.CHAT].get("/v1/models", headers={"origin": origin})

    assert preflight.status_code == 400
    for each in (preflight, reply):
        assert "access-control-allow-origin" not in cors(each)


def test_a_page_may_read_why_it_was_refused(known: Gateway):
    """401 and the like carry the origin, so that the page sees more than a failed fetch; a key is needed as ever."""
    reply = known[None].get("/v1/models", headers={"origin": HOME})

    error_of(reply, 401)
    assert cors(reply)["access-control-allow-origin"] == HOME


@pytest.mark.parametrize("host", ["api.example.org", "127.0.0.1:8080", "API.Example.ORG:443", "127.0.0.1"])
def test_a_known_host_is_answered(known: Gateway, host: str):
    """Its port and its case do not matter."""
    error_of(known[None].get("/v1/models", headers={"host": host}), 401)


@pytest.mark.parametrize(
    "host", ["attacker.test", "example.org", "example.org.attacker.test", "badexample.org", "", "a:b:c"]
)
def test_an_unknown_host_is_refused(known: Gateway, host: str):
    """Before its key is looked at; health is answered to probes, which name an address."""
    reply = known[Scope.ADMIN].get("/v1/keys", headers={"host": host})

    assert error_of(reply, 400)["code"] == "unknown_host"
    assert known[None].get("/health/live", headers={"host": host}).status_code == 200


def test_replies_are_neither_kept_nor_guessed(gateway: Gateway):
    """Good ones, refusals and what is not there; a stream says by itself that it is not to be cached."""
    chat = gateway[Scope.CHAT]
    replies = [
        chat.get("/v1/models"),
        chat.get("/v1/nothing"),
        gateway[None].get("/v1/models"),
        chat.post("/v1/chat/completions", json=chat_body()),
    ]
    streamed = chat.post("/v1/chat/completions", json=chat_body(stream=True))

    assert {reply.headers["cache-control"] for reply in replies} == {"no-store"}
    assert streamed.headers.get_list("cache-control") == ["no-cache"]
    for reply in (*replies, streamed, gateway[None].get("/health/live")):
        assert reply.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize(
    "fields",
    [
        {"cors_origins": "*"},
        {"cors_origins": "null"},
        {"cors_origins": "console.example.org"},
        {"cors_origins": "https://console.example.org/"},
        {"cors_origins": "https://*.example.org"},
        {"cors_origins": "https://me@example.org"},
        {"cors_origins": f"{HOME},ftp://example.org"},
        {"allowed_hosts": "https://example.org"},
        {"allowed_hosts": "example.org:8080"},
        {"allowed_hosts": "*"},
    ],
)
def test_what_is_no_origin_or_host_keeps_it_from_starting(fields: dict[str, str]):
    """Above all a wildcard: every page of the web would be let in."""
    with pytest.raises(ValidationError, match="is not"):
        GatewaySettings(**fields)
