"""One trace from a request at the gateway to whatever is done because of it, recorded or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr
from redis import Redis

from gateway.app import create_app
from gateway.settings import GatewaySettings
from services.trainer import runner
from services.trainer.context import Context
from services.trainer.hold import Hold
from services.trainer.rounds import Rounds
from services.trainer.runner import Runner
from services.trainer.settings import TrainerSettings
from services.trainer.training import commit
from tests.fake_actor import FakeActor
from tests.gateway_world import RECIPE, Gateway, chat_body, create_job
from tests.servers import RedisServer, serve, wait_until
from tests.unit.test_rounds import LIMITS, VERSIONS, FakeContext, FakeData, play
from vcllm.contracts.critiques import Critique, CritiqueItem, CritiqueReply, CritiqueRequest, Outcome
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.keys import Scope
from vcllm.contracts.recipes import Base, ImportStage, StageOrder
from vcllm.contracts.runs import DATASET, OUT, RESULT
from vcllm.contracts.traces import TraceParent, trace_of
from vcllm.settings import Settings
from vcllm.stores.connect import lease_key
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore
from vcllm.stores.tracing import trace_version
from vcllm.web import tracing
from vcllm.web.app import create_service
from vcllm.web.clients import CHUNK_ITEMS, CriticClient
from vcllm.web.otel import Recorder
from vcllm.web.spans import add_tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


class Collector:
    """Everything that all services have recorded."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def recorder(self, service: str) -> Recorder:
        return Recorder(service, SimpleSpanProcessor(self.exporter))

    def of(self, service: str, name: str) -> list[ReadableSpan]:
        """Those of a name, in the order in which they ended."""
        return [
            span
            for span in self.exporter.get_finished_spans()
            if span.resource.attributes["service.name"] == f"vc-llm-{service}" and span.name == name
        ]

    @property
    def text(self) -> str:
        return "".join(span.to_json() for span in self.exporter.get_finished_spans())


class Recorded(Gateway):
    """A gateway and an Actor that both record what they do."""

    spans: Collector


@pytest.fixture
def gateway(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Iterator[Recorded]:
    spans, actor = Collector(), FakeActor()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(RECIPE)
    with ExitStack() as stack:
        add_tracing(actor.app, spans.recorder("actor"))
        settings = Settings(
            redis_url=redis_url,
            home=tmp_path,
            recipes=tmp_path / "recipes",
            actor_urls=stack.enter_context(serve(actor.app)),
            internal_token="internal",
            pepper="pepper",
        )
        app = create_app(settings, GatewaySettings(alias_ttl_s=0))
        add_tracing(app, spans.recorder("gateway"))
        url = stack.enter_context(serve(app))
        redis = stack.enter_context(Redis.from_url(redis_url, decode_responses=True))
        gateway = Recorded(url, settings, redis, actor)
        gateway.spans = spans
        yield gateway
        for client in gateway.http.values():
            client.close()


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    return f"{span.context.span_id:016x}"


def traces_of(*spans: ReadableSpan) -> set[str]:
    return {f"{span.context.trace_id:032x}" for span in spans}


def chat(
    gateway: Gateway, text: str = "canary-prompt", headers: dict[str, str] = SENT, **fields: Any
) -> httpx.Response:
    return gateway[Scope.CHAT].post("/v1/chat/completions", json=chat_body(text, **fields), headers=headers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_one_trace_through_gateway_and_actor(gateway: Recorded, stream: bool):
    """The Actor's part hangs under the gateway's, and that under whatever the client was doing."""
    reply = chat(gateway, stream=stream)

    name = "POST /v1/chat/completions"
    wait_until(lambda: gateway.spans.of("gateway", name) and gateway.spans.of("actor", name))  # after the last byte
    [ours], [theirs] = gateway.spans.of("gateway", name), gateway.spans.of("actor", name)
    assert reply.status_code == 200
    assert traces_of(ours, theirs) == {TRACE}
    assert (parent_of(ours), parent_of(theirs)) == (SPAN, id_of(ours))


def test_a_chats_span_says_what_was_done_and_nothing_that_was_said(gateway: Recorded):
    """By the names that OpenTelemetry gives to calls of models; neither texts nor keys."""
    reply = chat(gateway)

    [ours] = gateway.spans.of("gateway", "POST /v1/chat/completions")
    told = dict(ours.attributes)
    assert told.pop("vc.replica") and told.pop("vc.request_id") == reply.headers["x-request-id"]
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vc_llm",
        "gen_ai.response.model": "actor-2",
        "vc.verdict": "unchecked",
    }
    for secret in ("canary-prompt", "你好", "vck_", "internal"):
        assert secret not in gateway.spans.text.replace("SpanKind.INTERNAL", "")


def test_a_bug_is_told_by_its_kind(gateway: Recorded):
    """The exception's text, here a secret, stays in the log."""
    chat(gateway, "bug")

    [theirs] = gateway.spans.of("actor", "POST /v1/chat/completions")
    assert theirs.attributes["http.response.status_code"] == 500
    assert theirs.attributes["error.type"] == "RuntimeError"
    assert not theirs.status.is_ok
    assert "canary-secret" not in gateway.spans.text


@pytest.mark.parametrize("path", ["/health/live", "/metrics"])
def test_probes_and_scrapes_are_not_recorded(gateway: Recorded, path: str):
    """There is one every few seconds, from every side."""
    gateway[Scope.ADMIN].get(path)

    assert not gateway.spans.exporter.get_finished_spans()


def test_an_unknown_path_makes_no_name_of_its_own(gateway: Recorded):
    """Whoever tries them all must not fill the collector's index."""
    gateway[None].get("/v1/canary-path")

    assert gateway.spans.of("gateway", "GET other")
    assert "canary-path" not in gateway.spans.text


def test_where_nobody_records_a_chat_has_a_trace_all_the_same(running: Gateway):
    """A new one, or the client's own as it was sent; the request's id goes with it."""
    running.reset()
    for headers in ({}, SENT):
        chat(running, headers=headers)

    fresh, sent = (headers for _, headers in running.actor.seen)
    assert TraceParent.parse(fresh["traceparent"]) is not None and fresh["x-request-id"].startswith("req-")
    assert sent["traceparent"] == SENT["traceparent"]


def test_a_job_hangs_under_the_request_that_made_it_also_after_a_crash(gateway: Recorded):
    """Its place is in its record, so that each attempt finds it, whoever sent the message."""
    gateway[Scope.JOBS_WRITE].headers.update(SENT)
    job = create_job(gateway).json()["id"]
    gateway.jobs.take(job)  # by a worker that is killed
    gateway.redis.delete(lease_key(job))
    trainer = TrainerSettings()
    runner.reap(gateway.settings, trainer, lambda id_, queue: None)
    work = Runner(gateway.settings, trainer, lambda id_, queue: None, recorder=gateway.spans.recorder("trainer"))
    (gateway.settings.recipes / "tiny.toml").unlink()  # so that it ends at once

    work.run(job)

    [asked], [ran] = gateway.spans.of("gateway", "POST /v1/jobs"), gateway.spans.of("trainer", "job pipeline")
    assert traces_of(asked, ran) == {TRACE}
    assert (parent_of(asked), parent_of(ran)) == (SPAN, id_of(asked))
    assert (ran.attributes["vc.job"], ran.attributes["vc.job.attempt"]) == (job, 2)
    assert ran.attributes["vc.job.state"] == "failed"


class OneRound:
    """A pipeline of one round among servers that answer by rule, and of the training run that learns from it."""

    stamps: set[str]

    def __init__(self, record: JobRecord, hold: Hold, redis: Redis, settings: Settings, *_: Any) -> None:
        self.record, self.redis, self.settings = record, redis, settings

    def run(self) -> dict[str, Any]:
        context = FakeContext()
        played = Rounds(context, FakeData(), lambda critic, number: LIMITS).play(1, VERSIONS, {})  # type: ignore[arg-type]
        jobs = Context.jobs.func(SimpleNamespace(redis=self.redis, settings=self.settings))
        child, _ = jobs.create(order([pair.id for pair in played.pairs]), queue="training", parent=self.record.id)
        return {"stamps": sorted({pair.provenance.trace for pair in played.pairs}), "child": child.id}


def order(pairs: list[str]) -> StageOrder:
    return StageOrder(
        stage=ImportStage(), role="actor", version="line-r1", lineage="line", round=1, seed=0, base=Base(model="m"),
        dataset="", recipe="r", recipe_hash="", charter="", replayed=pairs,
    )  # fmt: skip


def trained(record: JobRecord, settings: Settings, folder: Path) -> None:
    """Commit what a training run left."""
    (folder / OUT).mkdir(parents=True)
    (folder / OUT / "model.safetensors").write_bytes(b"weights")
    (folder / DATASET).write_text("")
    (folder / RESULT).write_text(json.dumps({"base": None, "format": "full", "metrics": {}, "probes": []}))
    commit(folder, order([]), ModelStore(settings.models), record, {}, lambda: None)


@pytest.mark.parametrize("recorded", [True, False])
def test_one_trace_goes_from_the_request_to_the_version(
    gateway: Recorded, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Job, pairs, training run, manifest and lineage have the id that the request came with."""
    monkeypatch.setattr(runner, "Pipeline", OneRound)
    gateway[Scope.JOBS_WRITE].headers.update(SENT)
    job = create_job(gateway).json()["id"]
    recorder = gateway.spans.recorder("trainer") if recorded else None

    Runner(gateway.settings, TrainerSettings(), lambda id_, queue: None, recorder=recorder).run(job)
    result = gateway.jobs.get(job).result
    child = gateway.jobs.get(result["child"])
    trained(child, gateway.settings, tmp_path / "run")

    store = ModelStore(gateway.settings.models)
    assert result["stamps"] == [TRACE]
    assert trace_of(child.traceparent) == TRACE
    assert store.manifest("actor", "line-r1").trace == TRACE
    assert trace_version(gateway.redis, store, "actor", "line-r1").trace == TRACE
    if recorded:
        played, ran = gateway.spans.of("trainer", "play")[0], gateway.spans.of("trainer", "job pipeline")[0]
        assert traces_of(played, ran) == {TRACE}
        assert parent_of(played) == id_of(ran) == TraceParent.parse(child.traceparent).span


def test_the_trainers_calls_hang_under_what_they_are_made_for():
    """They are made by threads of the client's own, side by side; the job's trace is their request id."""
    spans, ids = Collector(), []
    app = create_service("critic", lifespan=None)

    @app.post("/v1/critiques")
    def judge(body: CritiqueRequest) -> CritiqueReply:
        ids.append(tracing.request_id.get())
        return CritiqueReply(critiques=[unscored] * len(body.items), critic_version="c1")

    unscored = Critique(outcome=Outcome.UNSCORED, failure="outage")
    item = CritiqueItem(query="q", response="r", language="en")
    add_tracing(app, spans.recorder("critic"))
    with ExitStack() as stack:
        critic = stack.enter_context(CriticClient([stack.enter_context(serve(app))], SecretStr("internal")))
        recorder = spans.recorder("trainer")
        stack.enter_context(tracing.span("critique", above=SENT["traceparent"], recorder=recorder))
        critic.critiques(CritiqueRequest(items=[item] * (CHUNK_ITEMS + 1)))

    name = "POST /v1/critiques"
    [job], asked, answered = spans.of("trainer", "critique"), spans.of("trainer", name), spans.of("critic", name)
    assert traces_of(job, *asked, *answered) == {TRACE}
    assert [parent_of(one) for one in asked] == [id_of(job)] * 2
    assert {parent_of(one) for one in answered} == {id_of(one) for one in asked}
    assert ids == [TRACE, TRACE]


def test_a_round_that_another_job_goes_on_with_keeps_its_trace():
    """Its pairs may be queued already, and their ids hold it."""
    context = FakeContext()
    with tracing.span("job", above=SENT["traceparent"]):
        _, first = play(context)
    with tracing.span("job", above=f"00-{'a' * 32}-{SPAN}-01"):
        _, again = play(FakeContext(context.files))

    assert [pair.id for pair in again.pairs] == [pair.id for pair in first.pairs] != []
    assert {pair.provenance.trace for pair in again.pairs} == {TRACE}


def test_a_job_that_nobody_asked_for_has_a_trace_of_its_own(client: Redis):
    """As one made on the machine itself."""
    jobs = JobStore(client)
    one, other = (jobs.create(order([]), queue="training")[0] for _ in range(2))

    assert one.traceparent is not None and other.traceparent is not None
    assert trace_of(one.traceparent) != trace_of(other.traceparent)


def test_a_record_from_before_traces_is_read(client: Redis):
    """Jobs wait over an update."""
    record, _ = JobStore(client).create(order([]), queue="training")
    old = record.model_dump(mode="json")
    del old["traceparent"]

    assert JobRecord.model_validate_json(json.dumps(old)).traceparent is None
