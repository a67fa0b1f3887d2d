"""Bodies that nobody should send, to every service that has a port: refused in words, and the service serves on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI

from gateway.app import create_app
from tests.fake_actor import FakeActor
from tests.gateway_world import Gateway, chat_body, gateway_on
from tests.raw_http import JSON, Answer, ask, chunked
from tests.role_servers import role_servers
from tests.servers import RedisServer
from vcllm.contracts.keys import Scope
from vcllm.web.connections import SERVED
from vcllm.web.doorkeeper import DEADLINE_HEADER

BODY_S = 0.6
GOAL: dict[str, Any] = {
    "cell": {"subdomain": "pol.intl", "tactic": "direct", "language": "en"},
    "card": "c",
    "goal": 0,
    "text": "Rivers flow.",
}
ITEM = {"query": "Who may speak?", "response": "Everyone.", "language": "en"}
TWO = {"query": "Who may speak?", "first": "Everyone.", "second": "Nobody.", "language": "en"}
CHAT = chat_body("hello", max_tokens=2)


@dataclass(frozen=True)
class Asked:
    """A service, how to get in, and one good body for each route that does its work."""

    url: str
    app: FastAPI
    authorization: str
    good: dict[str, dict[str, Any]]
    most_bytes: int
    numbers: dict[str, list[str]] = field(default_factory=dict)
    """By path, the fields that are numbers."""

    def post(self, path: str, body: bytes, *headers: bytes, with_key: bool = True, method: str = "POST") -> Answer:
        keys = [f"authorization: {self.authorization}".encode()] if with_key else []
        kinds = [] if any(header.lower().startswith(b"content-type") for header in headers) else [JSON]
        return ask(self.url, f"{method} {path}".encode(), *keys, *kinds, *headers, body=body)

    def takers_of_json(self) -> list[tuple[str, str]]:
        """Method and path of every route that takes a JSON body, by the service's own description."""
        return [
            (method.upper(), re.sub(r"\{\w+\}", "v-1", path.replace("{role}", "actor")))
            for path, operations in self.app.openapi()["paths"].items()
            for method, operation in operations.items()
            if "application/json" in operation.get("requestBody", {}).get("content", {})
        ]


SAMPLING = ["temperature", "top_p", "max_tokens", "top_k", "seed", "n", "top_logprobs"]


@pytest.fixture(scope="module")
def services(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    """All four, served as the product serves them, but for the patience with slow bodies."""
    with ExitStack() as stack:
        options: dict[str, Any] = {"served": SERVED, "body_timeout_s": BODY_S}
        home = tmp_path_factory.mktemp("home")
        gateway: Gateway = stack.enter_context(gateway_on(redis_server.url, home, FakeActor(), **options))
        roles = stack.enter_context(
            role_servers(redis_server.url, tmp_path_factory.mktemp("roles"), body_timeout_s=BODY_S, **SERVED)
        )
        found = {
            "gateway": Asked(
                gateway.url,
                create_app(gateway.settings),
                f"Bearer {gateway.key(Scope.ADMIN)[0]}",
                {"/v1/chat/completions": CHAT, "/v1/jobs": {"recipe": "tiny", "validate_only": True}},
                1 << 20,
                {"/v1/chat/completions": SAMPLING, "/v1/jobs": ["seed"]},
            )
        }
        good: dict[str, dict[str, dict[str, Any]]] = {
            "attacker": {"/v1/attacks": {"goals": [GOAL], "max_tokens": 2}},
            "actor": {
                "/v1/chat/completions": CHAT,
                "/v1/chat/completions/batch": {"conversations": [CHAT["messages"]], "sampling": {"max_tokens": 2}},
            },
            "critic": {
                "/v1/critiques": {"items": [ITEM]},
                "/v1/comparisons": {"items": [TWO]},
                "/v1/embeddings": {"texts": ["Rivers flow."]},
            },
        }
        numbers = {
            "attacker": {"/v1/attacks": ["temperature", "max_tokens", "seed"]},
            "actor": {"/v1/chat/completions": SAMPLING, "/v1/chat/completions/batch": ["n"]},
            "critic": {},
        }
        for role, server in roles.items():
            authorization = server.authorization["authorization"]
            found[role] = Asked(server.url, server.app, authorization, good[role], 8 << 20, numbers[role])
        yield found


@pytest.fixture(params=["gateway", "attacker", "actor", "critic"])
def service(request: pytest.FixtureRequest, services: dict[str, Asked]) -> Iterator[Asked]:
    """One of them, which is well afterwards."""
    service = services[request.param]
    yield service
    for path, body in service.good.items():
        assert service.post(path, json.dumps(body).encode()).status == 200, "it does not serve on"


DEEP = 100_000
NO_JSON = {
    "nothing": b"",
    "arrays without end": b"[" * DEEP,
    "arrays in arrays": b"[" * DEEP + b"]" * DEEP,
    "objects in objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a field": b'{"messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep and legal for a parser": b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}",
    "a number of many digits": b'{"seed":' + b"9" * 100_000 + b"}",
    "a number beyond all": b'{"seed":1e999999}',
    "no number": b'{"temperature":NaN,"seed":NaN,"ttl_s":NaN}',
    "infinity": b'{"temperature":Infinity,"seed":-Infinity,"ttl_s":Infinity}',
    "no UTF-8": b'{"model":"\xff\xfe"}',
    "an overlong slash": b'{"model":"\xc0\xaf"}',
    "half a character, as bytes": b'{"model":"\xed\xa0\x80"}',
    "half a character, escaped": b'{"model":"\\ud800"}',
    "half a character as a name": b'{"\\ud800":1}',
    "a bad escape": b'{"model":"\\u12"}',
    "zeros": b"\0" * 1000,
    "an end too early": b'{"model":"v1"',
    "more after the end": b'{"model":"v1"} {"model":"v2"}',
    "a list": b"[1,2]",
    "null": b"null",
    "a text": b'"x"',
    "a very long name": b'{"' + b"a" * 200_000 + b'":1}',
    "many names": b"{" + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_request_is_refused(service: Asked, body: bytes):
    """400 in words at every route that takes JSON; to a stranger nothing more than that, or 401."""
    takers = service.takers_of_json()
    assert set(service.good) <= {path for _, path in takers}

    for method, path in takers:
        known = service.post(path, body, method=method)
        assert known.status in (400, 404) or (path.endswith("/rotate") and body == b""), (path, known)
        assert known.error["message"]
        assert len(known.body) < 2000, "a refusal does not give back what was sent"
        stranger = service.post(path, body, method=method, with_key=False)
        assert stranger.status in (400, 401), (path, stranger)
        assert b"v-1" not in stranger.body, "what exists is told to those who may know"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("with_key", [True, False])
def test_a_body_that_is_too_long_is_refused(service: Asked, declared: bool, with_key: bool):
    """413 before all of it was read, whether somebody says how long it is or not."""
    for path in service.good:
        if declared:
            keys = [f"authorization: {service.authorization}".encode()] if with_key else []
            answer = ask(service.url, f"POST {path}".encode(), JSON, *keys, length=service.most_bytes + 1)
        else:
            body = chunked([b" " * 65536] * (service.most_bytes // 65536 + 1))
            answer = service.post(path, body, b"transfer-encoding: chunked", with_key=with_key)
        assert answer.status == 413 or (answer.status == 401 and not with_key), answer
        assert answer.error["code"] == ("request_too_large" if answer.status == 413 else "invalid_api_key")


@pytest.mark.parametrize(
    "kind",
    [
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/octet-stream",
        b"text/html; charset=utf-7",
        b"*/*",
        b"",
        b"\xff",
        b"a" * 5000,
    ],
    ids=repr,
)
def test_another_kind_of_content_is_refused(service: Asked, kind: bytes):
    """415 with what to send instead: a page of another origin can send such kinds without asking first."""
    for path, body in service.good.items():
        answer = service.post(path, json.dumps(body).encode(), b"content-type: " + kind)
        assert answer.status == 415, (path, answer)
        assert "application/json" in answer.error["message"]


ODD_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "9" * 400,
    "-" + "9" * 400,
    str(2**63),
    str(-(2**63) - 1),
]
SMALL = ["5e-324", "-0.0", "1e-300", "0.1", "true", '"1"', "[1]", "{}", "null", "1.0", "0", "-1"]


@pytest.mark.parametrize("number", ODD_NUMBERS)
def test_a_number_that_is_none_or_too_large_is_refused(service: Asked, number: str):
    """400 with the field, for each field that is a number; the Attacker used to break on a seed beyond 64 bits."""
    for path, fields in service.numbers.items():
        for name in fields:
            body = json.dumps({**service.good[path], name: "HERE"}).replace('"HERE"', number)
            answer = service.post(path, body.encode())
            if name == "top_k" and answer.status == 200:  # more than all tokens is all of them
                continue
            assert answer.status == 400, (path, name, answer)


@pytest.mark.parametrize("number", SMALL)
def test_an_odd_number_breaks_nothing(service: Asked, number: str):
    """A temperature of next to nothing, a text that reads like a number: served or refused."""
    for path, fields in service.numbers.items():
        for name in fields:
            body = json.dumps({**service.good[path], name: "HERE"}).replace('"HERE"', number)
            assert service.post(path, body.encode()).status in (200, 400), (path, name)


def test_a_seed_has_64_bits(services: dict[str, Asked]):
    """A larger one passed the Attacker's door and broke its sampling: 500 where the Actor said 400."""
    attacker = services["attacker"]
    for seed, status in ((2**63 - 1, 200), (-(2**63), 200), (2**63, 400), (10**30, 400)):
        body = {**attacker.good["/v1/attacks"], "seed": seed}
        assert attacker.post("/v1/attacks", json.dumps(body).encode()).status == status


def test_half_a_character_is_refused_where_it_stands(services: dict[str, Asked]):
    """It used to reach the tokenizer or the reply, which cannot encode it: 500 at the Attacker and in batches."""
    goal = {**GOAL, "cell": {**GOAL["cell"], "subdomain": "\ud800"}}
    attack = services["attacker"].post("/v1/attacks", json.dumps({"goals": [goal]}).encode())
    talk = [[{"role": "user", "content": "\ud800"}]]
    batch = services["actor"].post("/v1/chat/completions/batch", json.dumps({"conversations": talk}).encode())

    assert (attack.status, attack.error["param"]) == (400, "goals.0.cell.subdomain")
    assert (batch.status, batch.error["param"]) == (400, "conversations.0.0.content")


ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u2066",
    "\uffff\U0010ffff",
    "<|end|><|assistant|>",
    "a" * 70_000,
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text[:12]))
def test_an_odd_text_breaks_nothing(service: Asked, text: str):
    """In every place of a good body where a text stands, one after the other: served or refused."""
    for path, good in service.good.items():
        for changed in with_each_text(good, text):
            answer = service.post(path, json.dumps(changed).encode())
            assert answer.status in (200, 400, 404), (path, changed, answer)
            assert answer.status == 200 or answer.error["message"]


def with_each_text(value: Any, text: str) -> Iterator[Any]:
    """Copies of a JSON value, in each of which one of its texts is another."""
    if isinstance(value, str):
        yield text
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from ({**value, name: changed} for changed in with_each_text(inner, text))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from ([*value[:place], changed, *value[place + 1 :]] for changed in with_each_text(inner, text))


@pytest.mark.parametrize(
    "name", ["..", "../v1", "/etc/passwd", "v1/../v1", "%2e%2e", "v1\0", "v1\n", "V1", "a" * 128, ".v1"]
)
def test_a_model_that_is_a_path_is_no_model(service: Asked, name: str):
    """No version of any name is looked for outside of the store."""
    for path, good in service.good.items():
        if path == "/v1/jobs":
            continue
        answer = service.post(path, json.dumps({**good, "model": name}).encode())
        assert answer.status in (400, 404) or service.app.title == "gateway", (path, answer)


def test_of_two_fields_with_one_name_the_last_counts(services: dict[str, Asked]):
    """Everywhere alike, so that nothing is checked that is not used."""
    answer = services["gateway"].post("/v1/jobs", b'{"recipe": "none", "validate_only": true, "recipe": "tiny"}')
    assert json.loads(answer.body)["recipe"] == "tiny"

    twice = json.dumps(CHAT)[:-1].encode() + b', "model": "nobody", "model": "v1"}'
    assert json.loads(services["actor"].post("/v1/chat/completions", twice).body)["model"] == "v1"


@pytest.mark.parametrize(
    "value", [b"", b" ", b"-1", b"1.5", b"1e3", b"0x10", b"9" * 13, b"\xb2", b"1,2", b"nan", b"12 34"]
)
def test_a_deadline_that_is_no_number_is_named(services: dict[str, Asked], value: bytes):
    """At each model server; through the gateway it is the Actor who says so."""
    for name in ("attacker", "actor", "critic"):
        for path, good in services[name].good.items():
            header = DEADLINE_HEADER.encode() + b": " + value
            answer = services[name].post(path, json.dumps(good).encode(), header)
            assert (answer.status, answer.error["code"]) == (400, "invalid_deadline"), answer


def test_a_body_that_does_not_come_is_given_up(service: Asked):
    """408, whoever asks, unless the key is looked at first and is missing."""
    for path in service.good:
        for keys in ([f"authorization: {service.authorization}".encode()], []):
            answer = ask(service.url, f"POST {path}".encode(), JSON, *keys, body=b"{", length=500)
            assert answer.status == 408 or (answer.status == 401 and not keys), answer
            assert answer.error["message"]
