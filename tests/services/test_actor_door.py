"""The Actor's door under clients that vanish, deadlines, the end of the server, and what its metrics say of it."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from tests.fakes import add_version
from tests.servers import serve, wait_until
from tests.service_tokens import ServiceAuth
from tests.vanishing import vanish_all
from vcllm.serving.run import DrainingServer
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore

TOKEN = "internal"
LONG = {"max_tokens": 12_000, "temperature": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home: Path = tmp_path_factory.mktemp("door")
    add_version(ModelStore(home / "models"), "actor", "v1", max_position_embeddings=16384)
    return home


@pytest.fixture
def app(home: Path, redis_url: str) -> FastAPI:
    """An Actor whose current version is v1, not yet started."""
    shared = Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN))
    with open_redis(redis_url, patience=0) as redis:
        AliasStore(redis).promote("actor", "v1")
    return create_app(ActorSettings(poll_s=0.02, max_rows=64), shared)


@contextmanager
def client_of(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, auth=ServiceAuth(TOKEN, "actor"), timeout=30) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture
def actor(app: FastAPI) -> Iterator[httpx.Client]:
    with serve(app) as url, client_of(url) as client:
        yield client


def ask(client: httpx.Client, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Who may speak?"}], "max_tokens": 8, "temperature": 0, **changes}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_two_hundred_clients_that_vanish_leave_nothing_behind(actor: httpx.Client, app: FastAPI) -> None:
    """In their body, in the queue, in the prefill, in a stream: within a second every place is free."""
    keeper = app.state.keeper

    asyncio.run(vanish_all(actor.base_url.port or 0, TOKEN, 200, random.Random(0)))

    wait_until(lambda: keeper.num_inside == 0 and keeper.door.inside == 0, timeout_s=1)
    wait_until(lambda: metrics(actor)['vc_engine_rows{version="v1"}'] == 0, timeout_s=1)
    assert (keeper.door.tokens.inside, metrics(actor)['vc_engine_waiting{version="v1"}']) == (0, 0)
    assert ask(actor).status_code == 200


def test_a_deadline_frees_the_rows(actor: httpx.Client) -> None:
    """Whole or streamed, the engine stops when the client no longer waits."""
    whole = ask(actor, {"x-vc-deadline-ms": "200"}, **LONG)
    stream = ask(actor, {"x-vc-deadline-ms": "200"}, stream=True, **LONG)

    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert '"deadline_exceeded"' in stream.text and "[DONE]" not in stream.text
    wait_until(lambda: metrics(actor)['vc_engine_rows{version="v1"}'] == 0, timeout_s=1)


def test_metrics_say_what_happened(actor: httpx.Client) -> None:
    """Two answers of eight tokens, one of them streamed."""
    whole = ask(actor)
    ask(actor, stream=True)

    seen = metrics(actor)

    assert float(whole.headers["x-vc-queue-ms"]) >= 0
    assert seen['vc_tokens_total{dir="out"}'] == 16
    assert seen['vc_tokens_total{dir="in"}'] == 2 * whole.json()["usage"]["prompt_tokens"]
    assert seen["vc_queue_wait_seconds_count"] == 2
    assert seen["vc_ttft_seconds_count"] == 1
    assert 1 <= seen["vc_itl_seconds_count"] <= 7
    assert seen["vc_queue_depth"] == 0
    assert seen['vc_rejected_total{reason="answers"}'] == 0
    assert seen['vc_requests_total{code="200",role="actor",route="/v1/chat/completions"}'] == 2
    [info] = [name for name in seen if name.startswith("vc_version_info{")]
    assert 'role="actor"' in info and 'version="v1"' in info and 'sha="' in info


def test_startup_and_life_are_told_apart(actor: httpx.Client, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose thread has died cannot become well: the process is to be replaced."""
    before = [actor.get(f"/health/{kind}").status_code for kind in ("startup", "live", "ready")]

    monkeypatch.setattr("vcllm.engine.local.LocalEngine.alive", False)

    assert before == [200, 200, 200]
    assert [actor.get(f"/health/{kind}").status_code for kind in ("startup", "live", "ready")] == [200, 503, 503]


@contextmanager
def draining_server(app: FastAPI, drain_s: float, pause_s: float) -> Iterator[tuple[DrainingServer, str]]:
    """The server of the process, in a thread; it is told to end by calling its signal handler."""
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=int(drain_s) + 1)
    server = DrainingServer(config, app.state.keeper, drain_s, pause_s)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the server did not end"


@pytest.mark.parametrize(("drain_s", "max_tokens"), [(20.0, 400), (0.6, 12_000)], ids=["in time", "too late"])
def test_the_end_of_a_server_loses_no_accepted_request(app: FastAPI, drain_s: float, max_tokens: int) -> None:
    """Ready goes off first, newcomers get 503; whole answers and streams are finished, or are told the reason."""
    replies: dict[bool, httpx.Response] = {}
    with draining_server(app, drain_s, pause_s=0.5) as (server, url), client_of(url) as client:

        def keep(stream: bool) -> None:
            with httpx.Client(base_url=url, auth=client.auth, timeout=30) as own:
                replies[stream] = ask(own, stream=stream, max_tokens=max_tokens)

        threads = [threading.Thread(target=keep, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        wait_until(lambda: app.state.keeper.door.inside == 2)
        told_at = time.monotonic()
        server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: client.get("/health/ready").status_code == 503, timeout_s=0.45)
        refused = ask(client)
        for thread in threads:
            thread.join(30)

    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    if max_tokens == 400:
        assert replies[False].json()["usage"]["completion_tokens"] == 400
        assert replies[True].text.endswith("data: [DONE]\n\n")
    else:
        assert (replies[False].status_code, replies[False].json()["error"]["code"]) == (503, "draining")
        assert '"draining"' in replies[True].text and "[DONE]" not in replies[True].text
        assert time.monotonic() - told_at < 10
