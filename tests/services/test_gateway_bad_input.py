"""What nobody should send to a gateway: odd headers, names that are paths, slow clients. It answers and stays whole."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app import create_app
from gateway.auth import scopes_by_operation
from tests.fake_actor import FakeActor
from tests.gateway_world import RECIPE, Gateway, add_version, chat_body, create_job, error_of, gateway_on
from tests.raw_http import JSON, Answer, ask, connected, read
from tests.servers import RedisServer
from vcllm.contracts.files import FileRecord
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import Manifest
from vcllm.web.connections import SERVED, BoundedProtocol

CHAT = b"POST /v1/chat/completions"
BODY = json.dumps(chat_body()).encode()
HEAD_S = BODY_S = 0.4
CANARY = "canary-7d02b1"
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

quick = settings(max_examples=25, derandomize=True, deadline=None, database=None)
"""The same examples in every run."""


class Impatient(BoundedProtocol):
    """The connections of the product, which wait no longer than a test can."""

    head_s = HEAD_S


@pytest.fixture(scope="module")
def running(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that is served as `python -m gateway` serves it."""
    served = {**SERVED, "http": Impatient}
    home = tmp_path_factory.mktemp("home")
    with gateway_on(redis_server.url, home, FakeActor(), served=served, body_timeout_s=BODY_S) as running:
        yield running


@pytest.fixture(scope="module")
def admin(running: Gateway) -> bytes:
    """The header line of a key that may do everything; made once, because the rest of this file resets nothing."""
    return b"authorization: Bearer " + running.key(Scope.ADMIN)[0].encode()


def asked_chat(gateway: Gateway, *headers: bytes) -> Answer:
    return ask(gateway.url, CHAT, *headers, body=BODY)


# Headers


READ = (
    b"content-type",
    b"x-request-id",
    b"x-vc-deadline-ms",
    b"traceparent",
    b"tracestate",
    b"origin",
    b"host",
    b"accept",
    b"cookie",
    b"expect",
    b"connection",
    b"upgrade",
    b"x-forwarded-for",
)
"""What we, the framework or the server look at in a request for a chat; credentials have a file of their own."""
values = st.binary(max_size=120).filter(lambda value: not set(value) & {0x0A, 0x0D})
telling = st.sampled_from(
    [b"\x00", b"\xff\xfe", b"[", b"[::1", b"a/b?c#d", b"user@host:x", b"-1", b"9" * 5000, b"{}" * 900]
)


@pytest.mark.parametrize("name", READ, ids=bytes.decode)
def test_any_value_of_a_header_is_survived(running: Gateway, admin: bytes, name: bytes):
    """Whatever bytes stand in it: an answer or a refusal with a body, and nothing of it in the reply's headers."""

    @quick
    @given(values | telling)
    def survive(value: bytes) -> None:
        given_ = [admin, name + b": " + value + CANARY.encode()]
        answer = asked_chat(running, *given_, *([] if name == b"content-type" else [JSON]))

        assert answer.status in (200, 400, 415), answer
        assert answer.status == 200 or answer.error["message"]
        assert SAFE_ID.fullmatch(answer.headers.get("x-request-id", "none"))
        if name != b"x-request-id":
            assert CANARY not in str(answer.headers)

    survive()


@pytest.mark.parametrize("target", [b"GET /nothing", b"DELETE /v1/chat/completions"])
@pytest.mark.parametrize("host", [b"[", b"[::1", b"a/b?c#d", b"@", b"\xff", b""])
def test_an_odd_host_does_not_spoil_an_error(running: Gateway, admin: bytes, target: bytes, host: bytes):
    """An error names the path that was asked for, which must not be put together with what calls itself a host."""
    answer = ask(running.url, target, admin, b"host: " + host)

    assert target.split()[1].decode() in answer.error["message"]
    assert answer.status in (404, 405)


@quick
@given(values)
def test_any_idempotency_key_is_survived(running: Gateway, admin: bytes, value: bytes):
    """It becomes part of a name in the store, or it is refused by name."""
    body = b'{"recipe": "tiny", "validate_only": true}'
    answer = ask(running.url, b"POST /v1/jobs", admin, JSON, b"idempotency-key: " + value, body=body)

    printable = re.fullmatch(rb"[\x21-\x7e]{1,128}", value.strip(b" \t"))
    assert answer.status == (200 if printable else 400), answer


@quick
@given(values | st.sampled_from([b"0-0", b"0", b"$", b"+", b"-", b">", b"(0", b"18446744073709551616", b"9" * 40]))
def test_any_place_among_events_is_survived(running: Gateway, admin: bytes, job: str, value: bytes):
    """As the header of an EventSource and in the address: a place, or 400; Redis does not get to see anything else."""
    header = ask(running.url, f"GET /v1/jobs/{job}/events".encode(), admin, b"last-event-id: " + value)

    assert header.status in (200, 204, 400), header


@pytest.fixture(scope="module")
def job(running: Gateway) -> str:
    return str(create_job(running).json()["id"])


@pytest.mark.parametrize(
    "headers",
    [
        [b"content-length: 5", b"content-length: 6"],
        [b"content-length: 5", b"transfer-encoding: chunked"],
        [b"transfer-encoding: chunked", b"content-length: 5"],
        [b"transfer-encoding: xchunked"],
        [b"transfer-encoding: chunked, identity"],
        [b"content-length: -1"],
        [b"content-length: +5"],
        [b"content-length: 5_0"],
        [b"content-length: \xb2"],
        [b"content-length: " + b"9" * 19],
        [b"content-length : 5"],
        [b" content-length: 5"],
    ],
)
def test_an_ambiguous_length_is_refused(running: Gateway, admin: bytes, headers: list[bytes]):
    """Two servers in a row that read it differently would take a part of one request for another request."""
    smuggled = b"0\r\n\r\nGET /v1/keys HTTP/1.1\r\n" + admin + b"\r\nhost: x\r\n\r\n"
    with connected(running.url) as connection:
        lines = [CHAT + b" HTTP/1.1", b"host: x", b"connection: close", admin, JSON, *headers, b"", b""]
        connection.sendall(b"\r\n".join(lines) + smuggled)
        answer = read(connection)

    assert answer.status in (400, 413), answer
    assert b"HTTP/1.1" not in answer.body, "there is one reply and no second"


def test_a_method_that_nobody_serves_is_405(running: Gateway, admin: bytes):
    """Also those that the framework would answer by itself."""
    for method in (b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH", b"PROPFIND"):
        assert ask(running.url, method + b" /v1/jobs", admin).status == 405, method
    assert ask(running.url, b"NONSENSE /v1/jobs", admin).status == 400


# Names


ODD_NAMES = (
    "..",
    ".",
    "../secrets/admin_key",
    "..%2fsecrets%2fadmin_key",
    "%2e%2e%2f%2e%2e%2fsecrets%2fadmin_key",
    "%2e%2e%5csecrets",
    "%2e%2e",
    "%252e%252e%252fsecrets",
    "%2Fetc%2Fpasswd",
    "v-1%00",
    "%00",
    "v-1%0d%0ax-evil:%201",
    "a" * 5000,
    "%F0%9F%A6%8B",
    "%C3%A9",
    "%FF%FE",
    "%ED%A0%80",
    "%E2%80%AE",
    "*",
    "%5Ba-z%5D*",
    "%3F",
    "%23",
    "V-1",
    "-rf",
    ".v-1",
    "v-1%20",
    "manifest.json",
    "vck_0123456789ab_" + "a" * 43,
    "vcllm:keys",
    "file-" + "0" * 24,
    "0" * 64,
)


def doors_with_names(gateway: Gateway) -> list[tuple[str, str]]:
    """Method and path of every route that has a name in its path."""
    found = [operation.split() for operation in scopes_by_operation(create_app(gateway.settings))]
    return [(method, path) for method, path in found if "{" in path]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: name[:24])
def test_no_name_in_an_address_is_a_path(running: Gateway, admin: bytes, name: str):
    """In every place of every route: it is refused or not found, nothing is read elsewhere and nothing is made."""
    lay_lures(running.settings.home)
    before = made(running)
    doors = doors_with_names(running)
    assert len(doors) > 30
    for method, path in doors:
        for parameter in re.findall(r"\{\w+\}", path):
            others = path.replace("{role}", "actor") if parameter != "{role}" else path
            target = re.sub(r"\{\w+\}", "v-1", others.replace(parameter, name))
            body = b"" if method in ("GET", "DELETE") else b"{}"
            answer = ask(running.url, f"{method} {target}".encode(), admin, JSON, body=body)

            assert 400 <= answer.status < 500, (method, target, answer)
            assert answer.error
            assert CANARY not in answer.body.decode() + str(answer.headers)
            assert "x-evil" not in answer.headers
    assert made(running) == before


def lay_lures(home: Path) -> None:
    """What a name that is a path would lead to: versions, files and a recipe, each where none belongs."""
    manifest = Manifest(
        role="actor",
        name="v-9",
        lineage=CANARY,
        stage="sft",
        format="full",
        files={},
        recipe={},
        recipe_hash="r",
        charter="c",
        dataset="d",
        token=1,
        job="job-1",
        created=1.0,
    )
    file = FileRecord(
        id="file-" + "0" * 24, filename=CANARY, num_bytes=13, sha256="0" * 64, created=1.0, owner="0" * 12
    )
    for folder in (home, home / "models", home / "models" / "actor", home / "files", home / "evil"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        (folder / "file.json").write_text(file.model_dump_json())
        (folder / "content.jsonl").write_text(CANARY)
    (home / "evil.toml").write_text(RECIPE)


def made(gateway: Gateway) -> tuple[set[str], set[str]]:
    """Everything that is there: keys in Redis, but for the books that every request is entered into, and files."""
    books = ("vcllm:audit", "vcllm:limits", "vcllm:usage", "vcllm:gateway", "vcllm:keys:used")
    keys = {key for key in gateway.redis.scan_iter() if not key.startswith(books)}
    return keys, {str(file) for file in gateway.settings.home.rglob("*") if "log" not in file.parts}


NAMED_IN_BODIES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("POST", "/v1/jobs", "recipe", {}),
    ("POST", "/v1/jobs", "stage", {"recipe": "tiny"}),
    ("POST", "/v1/jobs", "lineage", {"recipe": "tiny"}),
    ("POST", "/v1/campaigns", "recipe", {}),
    ("POST", "/v1/campaigns", "lineage", {"recipe": "tiny"}),
    ("PUT", "/v1/aliases/actor/current", "version", {"note": "n"}),
    ("POST", "/v1/models/rollback", "role", {}),
    ("POST", "/v1/fine_tuning/jobs", "model", {"training_file": "file-1"}),
    ("POST", "/v1/fine_tuning/jobs", "training_file", {"model": "v-2"}),
]


@pytest.mark.parametrize(("method", "path", "field", "rest"), NAMED_IN_BODIES, ids=lambda value: str(value)[:30])
def test_no_name_in_a_body_is_a_path(running: Gateway, method: str, path: str, field: str, rest: dict[str, Any]):
    """As little as one in an address; there it may also hold what no address can."""
    lay_lures(running.settings.home)
    add_version(running.settings, "v-2")
    before = made(running)
    odd = ["..", ".", "../evil", "../../evil", "/etc/passwd", "tiny\0", "tiny\n", "\ud800", "a" * 5000, "", "T"]

    for name in odd:
        content = json.dumps({**rest, field: name})
        headers = {"content-type": "application/json"}
        reply = running[Scope.ADMIN].request(method, path, content=content, headers=headers)
        assert reply.status_code in (400, 404), (name, reply.text)
        assert reply.json()["error"]["param"] == field, (name, reply.text)

    assert made(running) == before


HALF = "\ud800"
TEXTS_IN_BODIES: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "/v1/keys", {"name": HALF, "scopes": ["chat"]}, "name"),
    ("POST", "/v1/reviews/" + "0" * 64, {"outcome": "consistent", "note": HALF}, "note"),
    ("PUT", "/v1/aliases/actor/current", {"version": "v-1", "note": HALF}, "note"),
    ("POST", "/v1/models/v-1/promote", {"note": HALF}, "note"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "v-1", "training_file": HALF}, "training_file"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "v-1", "training_file": "f", "suffix": HALF}, "suffix"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "v-1", "training_file": "f", "metadata": {"a": HALF}}, "metadata.a"),
]


@pytest.mark.parametrize(("method", "path", "body", "param"), TEXTS_IN_BODIES, ids=lambda value: str(value)[:30])
def test_half_a_character_is_named(running: Gateway, method: str, path: str, body: dict[str, Any], param: str):
    """No text that is kept or said again may hold one: nothing could write it down."""
    headers = {"content-type": "application/json"}
    reply = running[Scope.ADMIN].request(method, path, content=json.dumps(body), headers=headers)

    assert error_of(reply, 400)["param"] == param


@pytest.mark.parametrize(
    "query",
    [
        "jobs?limit=" + "9" * 5000,
        "jobs?limit=-1",
        "jobs?limit=1e3",
        "jobs?before=nan",
        "jobs?before=1e999",
        "audit?before=99999999999999999999",
        "reviews?lineage=..",
        "reviews?after=-1",
        "versions?role=king",
        "versions?lineage=..%2f",
        "files?order=sideways",
        "fine_tuning/jobs?limit=0",
        "aliases/actor/history?limit=1001",
        "jobs?%FF=%FF&limit=%FF",
    ],
)
def test_a_wrong_query_is_named(running: Gateway, query: str):
    """400 with the parameter; a list is never longer or later than it may be asked for."""
    assert error_of(running[Scope.ADMIN].get(f"/v1/{query}"), 400)["param"]


def test_what_follows_nothing_is_not_found(running: Gateway):
    """A cursor is the id of something, whatever it looks like."""
    for query in ("versions?after=../..", "files?after=%00", "fine_tuning/jobs?after=*"):
        assert error_of(running[Scope.ADMIN].get(f"/v1/{query}"), 404)["param"] == "after"


def test_the_place_below_all_events_is_a_place(running: Gateway):
    """Redis refuses to look below its lowest id, which was a 500 at the end of the OpenAI SDK's pages."""
    add_version(running.settings, "v-2")
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    form: dict[str, Any] = {"files": {"file": ("a.jsonl", json.dumps(row))}, "data": {"purpose": "fine-tune"}}
    admin = running[Scope.ADMIN]
    file = admin.post("/v1/files", **form).json()["id"]
    job = admin.post("/v1/fine_tuning/jobs", json={"model": "v-2", "training_file": file}).json()["id"]

    for after in ("ftevent-0-0", "ftevent-0", "0-0"):
        reply = admin.get(f"/v1/fine_tuning/jobs/{job}/events", params={"after": after})
        assert (reply.status_code, reply.json()["data"]) == (200, [])


# Slow clients


def test_a_head_that_drips_is_given_up(running: Gateway):
    """408 in words after the time for a head, and nobody else waits meanwhile."""
    with connected(running.url) as connection:
        begun = time.monotonic()
        dripping = threading.Thread(target=drip, args=(connection, b"GET /v1/models HTTP/1.1\r\nx: " + b"a" * 10_000))
        dripping.start()
        assert running[None].get("/health/live").status_code == 200
        answer = read(connection)
        took_s = time.monotonic() - begun
        dripping.join(5)

    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert HEAD_S * 0.9 < took_s < HEAD_S + 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs", "/v1/keys"])
@pytest.mark.parametrize("with_key", [True, False])
def test_a_body_that_drips_is_given_up(running: Gateway, admin: bytes, path: str, with_key: bool):
    """408 after the time for a body, however busily it comes; a stranger does not even get that long."""
    keys = [admin] if with_key else []
    lines = [f"POST {path} HTTP/1.1".encode(), b"host: x", JSON, b"content-length: 10000", *keys, b"", b""]
    with connected(running.url) as connection:
        connection.sendall(b"\r\n".join(lines))
        dripping = threading.Thread(target=drip, args=(connection, b" " * 9000))
        dripping.start()
        answer = read(connection)
        dripping.join(5)

    assert answer.status == (408 if with_key else 401)
    assert answer.error["message"]


def test_what_comes_after_an_answer_keeps_no_connection(running: Gateway, admin: bytes):
    """The rest of a refused body, dripping or at once, and empty lines: each used to stop uvicorn's clock for good."""
    head = [CHAT + b" HTTP/1.1", b"host: x", JSON, b"content-length: 100000"]
    refused = b"\r\n".join([*head, b"", b""])
    served = b"\r\n".join([b"GET /health/live HTTP/1.1", b"host: x", b"", b""])

    for request, rest, status in ((refused, b" " * 99_000, 401), (served, b"\r\n" * 9000, 200)):
        with connected(running.url) as connection:
            connection.sendall(request)
            begun = time.monotonic()
            dripping = threading.Thread(target=drip, args=(connection, rest))
            dripping.start()
            assert read(connection).status == status
            assert time.monotonic() - begun < HEAD_S + 3
            dripping.join(5)
    with connected(running.url) as connection:
        connection.sendall(refused)
        time.sleep(0.1)
        connection.sendall(b" " * 100_000)
        assert read(connection).status == 401


def drip(connection: socket.socket, content: bytes) -> None:
    """A byte every few milliseconds, until the server has had enough."""
    for byte in content:
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.005)


def test_fifty_slow_clients_delay_nobody(running: Gateway, admin: bytes):
    """Each holds its own connection and nothing else."""
    head = b"\r\n".join([CHAT + b" HTTP/1.1", b"host: x", admin, JSON, b"content-length: 900", b"", b"{"])
    slow = [socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), 5) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(head)
        begun = time.monotonic()
        assert asked_chat(running, admin, JSON).status == 200
        assert time.monotonic() - begun < BODY_S * 5
        assert {read(connection).status for connection in slow} == {408}
    finally:
        for connection in slow:
            connection.close()


# What is not shown


def test_a_refusal_shows_nothing_of_the_inside(running: Gateway, admin: bytes, tmp_path: Path):
    """Neither where it is installed, nor what it stands on, in any of the refusals above and below."""
    inside = (str(running.settings.home), running.settings.redis_url, "Traceback", "site-packages", ".py", "internal ")
    tried = [
        ask(running.url, b"GET /nothing", admin),
        ask(running.url, b"GET /v1/jobs/x", admin),
        ask(running.url, b"GET /v1/lineage/versions/actor/x", admin),
        ask(running.url, b"PUT /v1/aliases/actor/current", admin, JSON, body=b'{"version": "x", "note": "n"}'),
        ask(running.url, b"POST /v1/jobs", admin, JSON, body=b'{"recipe": "x"}'),
        ask(running.url, CHAT, admin, JSON, body=json.dumps(chat_body("bug")).encode()),
        ask(running.url, CHAT, admin, JSON, body=json.dumps(chat_body("page")).encode()),
        ask(running.url, b"GET /v1/models", b"authorization: Bearer x"),
    ]

    for answer in tried:
        assert answer.status >= 400
        for secret in inside:
            assert secret not in answer.body.decode() + str(answer.headers), (secret, answer)


def test_no_refusal_says_where_things_lie(redis_server: RedisServer, tmp_path: Path):
    """Recipes, charters and files that are not there: each sentence used to name the server's folder."""
    with gateway_on(redis_server.url, tmp_path, FakeActor(), charters=tmp_path / "charters") as gateway:
        recipes = gateway.settings.recipes
        (recipes / "other.toml").write_text(RECIPE.replace('"tiny"', '"other"\ncharter = "nowhere"'))
        (recipes / "third.toml").write_text(RECIPE.replace('"tiny"', '"third"\ncharter = "empty"'))
        (tmp_path / "charters" / "empty").mkdir(parents=True)
        (tmp_path / "files").touch()
        form: dict[str, Any] = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}
        admin = gateway[Scope.ADMIN]
        charter = admin.post("/v1/campaigns", json={"recipe": "other"})
        empty = admin.post("/v1/campaigns", json={"recipe": "third"})
        file = admin.post("/v1/files", **form)
        for recipe in recipes.glob("*.toml"):
            recipe.unlink()
        recipe_reply = admin.post("/v1/jobs", json={"recipe": "tiny"})

    for reply, status in ((charter, 400), (empty, 400), (file, 503), (recipe_reply, 400)):
        assert str(tmp_path) not in str(error_of(reply, status))


def test_no_address_from_a_request_is_called(running: Gateway, admin: bytes):
    """Wherever one may stand: upstreams come from the configuration, and nothing else is ever connected to."""
    with socket.create_server(("127.0.0.1", 0)) as lure:
        lure.setblocking(False)
        address = f"http://127.0.0.1:{lure.getsockname()[1]}/"
        image = [{"type": "image_url", "image_url": {"url": address}}]
        bodies: list[tuple[bytes, dict[str, Any]]] = [
            *((CHAT, chat_body(**{name: address})) for name in ("api_base", "base_url", "model", "webhook", "user")),
            (CHAT, chat_body(metadata={"callback": address})),
            (CHAT, {"messages": [{"role": "user", "content": image}]}),
            (b"POST /v1/jobs", {"recipe": address}),
            (b"POST /v1/fine_tuning/jobs", {"model": "v-1", "training_file": address}),
            (b"POST /v1/fine_tuning/jobs", {"model": "v-1", "training_file": "f", "integrations": [{"url": address}]}),
        ]
        for line, body in bodies:
            ask(running.url, line, admin, JSON, body=json.dumps(body).encode())
        for header in ("host", "x-forwarded-host", "forwarded", "referer", "x-original-url", "x-vc-upstream"):
            assert asked_chat(running, admin, JSON, f"{header}: {address}".encode()).status == 200

        with pytest.raises(BlockingIOError):
            lure.accept()
