"""The Actor with a model on another server: the same door, headers, versions and metrics as with one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from tests.fake_upstream import DONE, FakeUpstream, chunk, streamed, usage, whole
from tests.servers import free_port, serve, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.settings import Settings

TOKEN = "internal"
CHAT = "/v1/chat/completions"
HOSTED = "Org/Hosted-1"
ASK = {"messages": [{"role": "user", "content": "Who may speak?"}], "max_tokens": 8}


@pytest.fixture
def fake() -> FakeUpstream:
    fake = FakeUpstream()
    fake.models = {HOSTED: HOSTED}
    return fake


@contextmanager
def actor_before(url: str, home: Path, redis_url: str) -> Iterator[httpx.Client]:
    """An Actor whose answers the server at `url` writes."""
    shared = Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN))
    server = ActorSettings(upstream_url=url, upstream_model=HOSTED, upstream_retries=0, poll_s=0.02)
    auth = ServiceAuth(TOKEN, "actor")
    with serve(create_app(server, shared)) as own, httpx.Client(base_url=own, auth=auth, timeout=30) as client:
        yield client


@pytest.fixture
def actor(fake: FakeUpstream, tmp_path: Path, redis_url: str) -> Iterator[httpx.Client]:
    with serve(fake.app) as url, actor_before(url, tmp_path, redis_url) as client:
        wait_until(lambda: is_ready(client))
        yield client


def is_ready(client: httpx.Client) -> bool:
    return client.get("/health/ready").status_code == 200


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("model", ["vc-llm", HOSTED])
def test_a_hosted_model_answers_in_its_own_name(model: str, actor: httpx.Client, fake: FakeUpstream) -> None:
    """Asked for by ours or by its own."""
    fake.script(CHAT, whole("Everyone."))

    reply = actor.post(CHAT, json={**ASK, "model": model})

    assert reply.json()["choices"][0]["message"]["content"] == "Everyone."
    assert (reply.json()["model"], reply.headers["x-vc-version"]) == (HOSTED, HOSTED)
    assert reply.headers["x-vc-queue-ms"] == "0.0"


def test_its_tokens_are_counted_also_where_they_are_told_at_the_end(actor: httpx.Client, fake: FakeUpstream) -> None:
    """One answer whole, one streamed; nobody is left inside."""
    pieces = chunk("Every"), chunk("one"), chunk(finish="stop"), usage(7, 3), DONE
    fake.script(CHAT, whole("Everyone.", prompt_tokens=5, completion_tokens=2), streamed(*pieces))
    actor.post(CHAT, json=ASK)
    stream = actor.post(CHAT, json={**ASK, "stream": True})

    wait_until(lambda: metrics(actor)["vc_answers_inside"] == 0)

    seen = metrics(actor)
    assert "[DONE]" in stream.text
    assert (seen['vc_tokens_total{dir="in"}'], seen['vc_tokens_total{dir="out"}']) == (12, 5)
    assert (seen["vc_ttft_seconds_count"], seen["vc_queue_depth"]) == (1, 0)


def test_an_answer_that_the_upstream_works_on_does_not_wait(actor: httpx.Client, fake: FakeUpstream) -> None:
    """The line at our door is only of those that have not been passed on."""
    fake.script(CHAT, streamed(chunk("Every"), 30.0))

    with actor.stream("POST", CHAT, json={**ASK, "stream": True}) as stream:
        lines = stream.iter_lines()  # let go of, it would close the stream
        next(lines)
        during = metrics(actor)

    assert (during["vc_answers_inside"], during["vc_queue_depth"]) == (1, 0)
    wait_until(lambda: metrics(actor)["vc_answers_inside"] == 0)


def test_an_upstream_that_starts_later_is_taken_up_at_once(fake: FakeUpstream, tmp_path: Path, redis_url: str) -> None:
    """Until then the Actor lives, says why it is not ready, and refuses nothing for half a minute."""
    port = free_port()
    with actor_before(f"http://127.0.0.1:{port}", tmp_path, redis_url) as client:
        wait_until(lambda: client.get("/health/startup").status_code == 200, timeout_s=30)
        before = client.get("/health/ready")
        live = client.get("/health/live").status_code
        with serve(fake.app, port):
            wait_until(lambda: is_ready(client), timeout_s=30)

    assert (before.status_code, live) == (503, 200)
    assert "does not answer" in before.text
