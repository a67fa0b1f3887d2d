"""Every reply has a request id, and every error the body the `openai` SDK understands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.testclient import TestClient

from tests.servers import serve
from vcllm.contracts.base import Contract
from vcllm.contracts.problems import BadRequest, Conflict, NotFound, Overloaded, Problem, Unavailable, UpstreamFailed
from vcllm.web.app import create_service, request_id
from vcllm.web.auth import services_only
from vcllm.web.health import add_health
from vcllm.web.logs import RequestIdFilter
from vcllm.web.metrics import add_metrics
from vcllm.web.problems import problem_of
from vcllm.web.replies import problem_reply

LIMIT = 4096


class Echo(Contract):
    text: str
    times: int = 1


def echo_app() -> FastAPI:
    app = create_service("echo", lifespan=None, max_body_bytes=LIMIT)
    registry = CollectorRegistry()
    add_metrics(app, registry)

    @app.post("/echo")
    async def echo(body: Echo) -> Echo:
        body.text.encode()  # as a tokenizer does
        return body

    @app.get("/number")
    async def number(n: Annotated[int, Query(ge=1)]) -> int:
        return n

    @app.get("/id")
    async def say_id() -> str:
        return request_id.get()

    @app.get("/fail/{kind}")
    async def fail(kind: str) -> None:
        kinds: dict[str, Exception] = {
            "bad": BadRequest("No.", param="kind", code="no"),
            "busy": Overloaded("Full.", retry_after_s=0.25),
            "conflict": Conflict("Not now."),
            "bug": RuntimeError("canary-secret"),
        }
        raise kinds[kind]

    @app.get("/private", dependencies=[Depends(services_only(SecretStr("token"), "critic"))])
    async def private() -> str:
        return "in"

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(echo_app(), raise_server_exceptions=False) as opened:
        yield opened


def error_of(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert reply.headers["x-request-id"]
    return dict(error)


def test_framework_errors_have_the_openai_body(client: TestClient):
    """404, 405, 415 and a broken body, which the framework answers by itself."""
    assert error_of(client.get("/nothing"), 404)["code"] == "not_found"
    assert error_of(client.put("/echo"), 405)["code"] == "method_not_allowed"
    assert error_of(client.post("/echo", content=b'{"text": "a"}'), 415)["code"] == "unsupported_media_type"
    broken = client.post("/echo", content=b"{", headers={"content-type": "application/json"})
    assert error_of(broken, 400)["code"] == "invalid_json"
    assert client.put("/echo").headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "text"), ({"text": "a", "times": "x"}, "times"), ({"text": "a", "tixt": 1}, "tixt")],
)
def test_a_wrong_field_is_named(client: TestClient, body: dict[str, Any], param: str):
    """400, with the field in `param`."""
    assert error_of(client.post("/echo", json=body), 400)["param"] == param


def test_a_wrong_query_parameter_is_named(client: TestClient):
    """The same for what stands in the address."""
    assert error_of(client.get("/number?n=0"), 400)["param"] == "n"


def test_a_value_is_not_repeated_to_its_sender(client: TestClient):
    """An error says which field is wrong, not what was in it: replies end up in logs."""
    reply = client.post("/echo", json={"text": ["canary-secret"]})

    assert "canary-secret" not in reply.text


def test_text_that_nobody_can_encode_is_no_bug(client: TestClient):
    """Half a surrogate pair, in the name of a field or in a value, is the sender's mistake."""
    json = {"content-type": "application/json"}

    for body in (b'{"text": "a", "\\ud800": 1}', b'{"text": "\\ud800"}'):
        error_of(client.post("/echo", content=body, headers=json), 400)


def test_deep_nesting_is_no_bug(client: TestClient):
    """What the parser gives up on is the sender's mistake."""
    reply = client.post("/echo", content=b"[" * LIMIT, headers={"content-type": "application/json"})

    error_of(reply, 400)


def test_problems_become_replies(client: TestClient):
    """Status, body, and when to come back."""
    busy = client.get("/fail/busy")

    assert error_of(client.get("/fail/bad"), 400) == {
        "message": "No.",
        "type": "invalid_request_error",
        "param": "kind",
        "code": "no",
    }
    error_of(busy, 429)
    assert busy.headers["retry-after"] == "1"
    assert busy.headers["retry-after-ms"] == "250"
    assert "x-should-retry" not in busy.headers


def test_a_conflict_is_not_to_be_repeated(client: TestClient):
    """The SDK repeats 409 unless it is told not to."""
    reply = client.get("/fail/conflict")

    error_of(reply, 409)
    assert reply.headers["x-should-retry"] == "false"


def test_a_bug_tells_nothing_but_its_request_id(client: TestClient):
    """500 with the body, and none of the exception's text."""
    reply = client.get("/fail/bug")

    error = error_of(reply, 500)
    assert reply.headers["x-request-id"] in error["message"]
    assert "canary-secret" not in reply.text


@pytest.mark.parametrize("sent", ["trace-1", "a" * 128, "round:3.pair_7"])
def test_a_safe_request_id_is_kept(client: TestClient, sent: str):
    """In the reply and for whoever serves the request."""
    reply = client.get("/id", headers={"x-request-id": sent})

    assert reply.headers["x-request-id"] == sent
    assert reply.json() == sent


@pytest.mark.parametrize("sent", ["", "a b", "a" * 129, "<script>", "a\tb", "日本".encode(), b"a\x7f"])
def test_an_unsafe_request_id_is_replaced(client: TestClient, sent: str | bytes):
    """It goes into logs and headers."""
    reply = client.get("/id", headers={"x-request-id": sent})

    assert reply.headers["x-request-id"].startswith("req-")
    assert reply.json() == reply.headers["x-request-id"]


def test_log_records_carry_the_request_id():
    """Also outside of any request."""
    record = logging.LogRecord("n", logging.INFO, "p", 1, "m", None, None)
    token = request_id.set("trace-1")

    assert RequestIdFilter().filter(record)
    assert record.request_id == "trace-1"
    request_id.reset(token)


def test_there_are_no_documentation_routes(client: TestClient):
    """The schema is not for everybody."""
    for path in ("/docs", "/redoc", "/openapi.json"):
        error_of(client.get(path), 404)


def test_a_large_body_is_refused():
    """Over a real socket: declared, in chunks without a length, and for a path that does not read it."""

    def chunks() -> Iterator[bytes]:
        for _ in range(8):
            yield b" " * 1024

    with serve(echo_app()) as url, httpx.Client(base_url=url) as http:
        json = {"content-type": "application/json"}
        declared = http.post("/echo", content=b" " * (LIMIT + 1), headers=json)
        chunked = http.post("/echo", content=chunks(), headers=json)
        elsewhere = http.post("/nothing", content=b" " * (LIMIT + 1))
        fits = http.post("/echo", content=b'{"text": "a"}' + b" " * (LIMIT - 13), headers=json)

    for reply in (declared, chunked, elsewhere):
        assert error_of(reply, 413)["code"] == "request_too_large"
    assert fits.status_code == 200


def test_health_says_what_is_missing():
    """Alive, started and ready are three answers."""
    fault: list[str | None] = ["The model is loading."]
    app = create_service("role", lifespan=None)
    add_health(app, ready=lambda: fault[0], started=lambda: fault[0])
    client = TestClient(app)

    loading = client.get("/health/ready")
    assert (loading.status_code, loading.json()["detail"]) == (503, "The model is loading.")
    assert client.get("/health/startup").status_code == 503
    assert client.get("/health/live").json() == {"status": "ok"}
    fault[0] = None
    assert client.get("/health/ready").json() == {"status": "ok"}


def test_requests_are_counted_by_route():
    """By template, not by address; unknown addresses together; health and metrics not at all."""
    with TestClient(echo_app(), raise_server_exceptions=False) as client:
        for path in ("/fail/busy", "/fail/bug", "/nothing/1", "/nothing/2", "/number?n=1"):
            client.get(path)
        client.post("/echo", content=b" " * (LIMIT + 1))
        text = client.get("/metrics").text

    assert 'vc_requests_total{code="429",role="echo",route="/fail/{kind}"} 1.0' in text
    assert 'vc_requests_total{code="500",role="echo",route="/fail/{kind}"} 1.0' in text
    assert 'vc_requests_total{code="404",role="echo",route="other"} 2.0' in text
    assert 'vc_requests_total{code="413",role="echo",route="other"} 1.0' in text
    assert 'vc_requests_total{code="200",role="echo",route="/number"} 1.0' in text
    assert 'vc_inflight{role="echo"} 0.0' in text
    assert "/metrics" not in text


@pytest.mark.parametrize(
    "problem",
    [
        BadRequest("a", param="p", code="c"),
        NotFound("b"),
        Conflict("c", code="illegal_move"),
        Overloaded("d", retry_after_s=0.5),
        Unavailable("e", retry_after_s=3),
        UpstreamFailed("f"),
    ],
)
def test_a_problem_survives_the_wire(problem: Problem):
    """What a client raises is what the server raised."""
    reply = problem_reply(problem)

    received = problem_of(reply.status_code, bytes(reply.body), reply.headers)

    assert type(received) is type(problem)
    assert received.body() == problem.body()
    assert received.retry_after_s == problem.retry_after_s


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "text"}', b'{"detail": 1}'])
def test_an_error_that_says_nothing_keeps_its_status(body: bytes):
    """A proxy's own page is still a 503."""
    received = problem_of(503, body, {"retry-after": "soon"})

    assert isinstance(received, Unavailable)
    assert "503" in received.message
    assert received.retry_after_s is None


def test_a_request_id_does_not_leak_into_another_request():
    """Requests side by side each see their own."""
    app = create_service("echo", lifespan=None)

    @app.get("/id")
    async def say_id() -> str:
        await asyncio.sleep(0.05)
        return request_id.get()

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            return await asyncio.gather(*(http.get("/id", headers={"x-request-id": f"t-{n}"}) for n in range(8)))

    replies = asyncio.run(ask_all())

    assert [reply.json() for reply in replies] == [f"t-{n}" for n in range(8)]
