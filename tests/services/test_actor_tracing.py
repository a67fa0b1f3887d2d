"""The span of a chat at the Actor: who was asked for, who answered, how much, and never what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from tests.fake_engine import TOKENS, FakeEngine
from tests.fakes import add_version
from tests.servers import serve, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore
from vcllm.web.otel import Recorder
from vcllm.web.spans import add_tracing

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(redis_url: str, tmp_path: Path) -> Iterator[Ask]:
    """Ask for a chat; the attributes of its span."""
    add_version(ModelStore(tmp_path / "models"), "actor", "v1")
    with open_redis(redis_url) as redis:
        AliasStore(redis).promote("actor", "v1")
    shared = Settings(redis_url=redis_url, home=tmp_path, internal_token=SecretStr("internal"))
    app = create_app(ActorSettings(poll_s=0.05), shared, engine=lambda _: FakeEngine())  # type: ignore[arg-type,return-value]
    spans = InMemorySpanExporter()
    add_tracing(app, Recorder("actor", SimpleSpanProcessor(spans)))
    with serve(app) as url, httpx.Client(base_url=url, auth=ServiceAuth("internal", "actor"), timeout=20) as client:
        wait_until(lambda: client.get("/health/ready").is_success)

        def asked(**fields: Any) -> dict[str, Any]:
            body = {"messages": [{"role": "user", "content": "canary-prompt"}], "max_tokens": 20, **fields}
            assert client.post("/v1/chat/completions", json=body).is_success
            wait_until(lambda: len(spans.get_finished_spans()) == 1)
            [span] = spans.get_finished_spans()
            assert not any(text in span.to_json() for text in ("canary-prompt", TOKENS[0], "quoted"))
            return dict(span.attributes or {})

        yield asked


@pytest.mark.parametrize("stream", [False, True])
def test_a_chats_span_tells_its_models_and_its_tokens(ask: Ask, stream: bool):
    """By OpenTelemetry's names, streamed or whole."""
    told = ask(stream=stream)

    assert {name: value for name, value in told.items() if name.startswith("gen_ai") and "finish" not in name} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vc_llm",
        "gen_ai.request.model": "vc-llm",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.model": "v1",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": len(TOKENS),
    }


def test_a_whole_answers_span_tells_why_it_ended(ask: Ask):
    """One reason for each answer."""
    assert ask(n=2)["gen_ai.response.finish_reasons"] == ("stop", "stop")
