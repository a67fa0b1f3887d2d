"""Chat as the `openai` SDK expects it: every test runs against an Actor directly and through a gateway.

What a model has to do is asked of a real engine; what the protocol has to carry, of one without a model.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import SecretStr
from redis import Redis

from gateway.app import create_app as create_gateway
from gateway.settings import GatewaySettings
from services.actor.app import create_app as create_actor
from services.actor.settings import ActorSettings
from tests.fake_engine import TOKENS, FakeEngine
from tests.fakes import add_version
from tests.servers import RedisServer, serve, wait_until
from tests.service_tokens import token_maker
from vcllm.contracts.keys import Scope
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.models import ModelStore

GOLDEN = Path(__file__).parent / "golden"
CHAT = "/v1/chat/completions"
EN: Any = [{"role": "user", "content": "Who may speak?"}]
BODY_TIMEOUT_S = 0.6


@dataclass(frozen=True)
class Door:
    """Where to ask, and with what key."""

    url: str
    make_key: Callable[[], str]
    """A key that is good for a minute at least."""

    @property
    def key(self) -> str:
        return self.make_key()

    @property
    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, verify=False)

    def sdk(self, **options: Any) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=False)  # reading certificates takes longer than a test
        given = {"api_key": self.key, "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", http_client=http, **given)


class Doors(dict[tuple[str, str], Door]):
    """(actor or gateway, model or script) to its door."""

    script: FakeEngine


@pytest.fixture(scope="module")
def doors(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A model store with one promoted version, two Actors and a gateway before each."""
    home = tmp_path_factory.mktemp("home")
    store, script, doors = ModelStore(home / "models"), FakeEngine(), Doors()
    doors.script = script
    add_version(store, "actor", "v1", seed=1, created=1700000000, max_position_embeddings=2048)
    add_version(store, "actor", "v2", seed=2, created=1700000001)
    with ExitStack() as stack:
        redis = stack.enter_context(Redis.from_url(redis_server.url, decode_responses=True))
        redis.flushall()
        AliasStore(redis).promote("actor", "v1")
        shared = Settings(
            home=home,
            redis_url=redis_server.url,
            internal_token=SecretStr("internal"),
            pepper=SecretStr("pepper"),
            body_timeout_s=BODY_TIMEOUT_S,
            keep_alive_s=0.1,
        )
        key, _ = KeyStore(redis, shared.pepper).create("test", [Scope.CHAT])
        for name, engine in (("model", None), ("script", lambda _: script)):
            actor = stack.enter_context(
                serve(create_actor(ActorSettings(poll_s=0.05), shared, engine=engine))  # type: ignore[arg-type]
            )
            wait_until(lambda: httpx.get(f"{actor}/health/ready").is_success)  # noqa: B023
            before = shared.model_copy(update={"actor_urls": actor})
            doors["actor", name] = Door(actor, token_maker("internal", "actor"))
            doors["gateway", name] = Door(
                stack.enter_context(serve(create_gateway(before, GatewaySettings()))), lambda: key
            )
        yield doors


@pytest.fixture(params=["actor", "gateway"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(doors: Doors, way: str) -> Door:
    """A door to a real engine."""
    return doors[way, "model"]


@pytest.fixture
def script(doors: Doors, way: str) -> Door:
    """A door to an engine that always writes the same."""
    return doors[way, "script"]


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "vc-llm", "messages": EN, **fields})


def texts(chunks: list[ChatCompletionChunk], n: int = 1) -> list[str]:
    pieces = [""] * n
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        pieces[choice.index] += choice.delta.content or ""
    return pieces


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return dict(error)


# Answers


def test_a_reply_is_all_the_sdk_reads(model: Door):
    """Identity, text, end, counts; no field is there that the SDK's types do not know."""
    with model.sdk() as client:
        reply = create(client, seed=3, max_tokens=9)

    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.model == "v1"
    assert re.fullmatch("fp_[0-9a-f]{12}", reply.system_fingerprint)
    [choice] = reply.choices
    assert (choice.index, choice.message.role, choice.message.refusal, choice.logprobs) == (0, "assistant", None, None)
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert not (reply.model_extra or choice.model_extra or choice.message.model_extra or reply.usage.model_extra)


def test_a_stream_says_what_the_whole_reply_says(model: Door):
    """For each of n answers with the same seed: text, ends, usage, fingerprint."""
    options: dict[str, Any] = {"seed": 4, "max_tokens": 12, "n": 3}
    with model.sdk() as client:
        whole = create(client, **options)

        chunks = list(create(client, **options, stream=True, stream_options={"include_usage": True}))

    assert texts(chunks, 3) == [choice.message.content for choice in whole.choices]
    ends = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_a_stop_string_ends_the_text_before_it(model: Door):
    """One or several, whole and streamed."""
    with model.sdk() as client:
        text = create(client, seed=5, temperature=0, max_tokens=30).choices[0].message.content
        stop = text[4:6]

        cut = create(client, seed=5, temperature=0, max_tokens=30, stop=stop)
        streamed = list(create(client, seed=5, temperature=0, max_tokens=30, stop=[stop, "never said"], stream=True))

    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert texts(streamed) == [cut.choices[0].message.content]


def test_the_same_seed_writes_the_same(model: Door):
    """Also the smallest and the largest; another seed writes something else."""
    with model.sdk() as client:
        said = [create(client, seed=s, max_tokens=20).choices[0].message.content for s in (7, 7, -(2**63), 2**63 - 1)]

    assert said[0] == said[1]
    assert len(set(said)) == 3


def test_the_newer_name_of_max_tokens_counts(model: Door):
    """`max_completion_tokens` is the limit, and reaching it is the end `length`."""
    with model.sdk() as client:
        reply = create(client, temperature=0, max_completion_tokens=3)

    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (3, "length")


def test_text_parts_and_developers_are_understood(doors: Doors, script: Door):
    """The engine sees one text per turn; an answer of the SDK can be sent back as it is."""
    with script.sdk() as client:
        answer = create(client).choices[0].message
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        create(
            client, messages=[{"role": "developer", "content": "Be fair."}, answer, {"role": "user", "content": parts}]
        )

    turns = [(turn.role, turn.content) for turn in doors.script.asked[-1][0]]
    assert turns == [("system", "Be fair."), ("assistant", "".join(TOKENS)), ("user", "one\ntwo")]


def test_every_way_of_drawing_reaches_the_engine(doors: Doors, script: Door):
    """What the request says is what the engine is told."""
    fields = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": -3, "stop": "x", "logit_bias": {"5": -100}}
    with script.sdk() as client:
        create(client, **fields, logprobs=True, top_logprobs=2, extra_body={"top_k": 40})

    told = doors.script.asked[-1][1].model_dump()
    assert told == {**fields, "stop": ["x"], "logit_bias": {5: -100.0}, "logprobs": 2, "top_k": 40}


@pytest.mark.parametrize("top", [0, 2])
def test_logprobs_are_the_same_whole_and_streamed(script: Door, top: int):
    """Token by token with bytes and the alternatives asked for, for each of n answers."""
    options: dict[str, Any] = {"n": 2, "logprobs": True, "top_logprobs": top}
    with script.sdk() as client:
        whole = create(client, **options)
        streamed: list[list[Any]] = [[], []]

        for chunk in create(client, **options, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.logprobs.content if choice.logprobs else []

    for choice in whole.choices:
        assert choice.logprobs.refusal is None
        assert choice.logprobs.content == streamed[choice.index]
        assert [each.token for each in choice.logprobs.content] == list(TOKENS)
        assert [len(each.top_logprobs) for each in choice.logprobs.content] == [top] * len(TOKENS)
        assert bytes(choice.logprobs.content[1].bytes).decode() == TOKENS[1]


# Streams, byte by byte


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("plain", {}),
        ("usage_of_two", {"n": 2, "stream_options": {"include_usage": True}}),
        ("logprobs", {"logprobs": True, "top_logprobs": 1}),
        ("broken", {"messages": [{"role": "user", "content": "break"}]}),
    ],
)
def test_a_stream_is_these_bytes(script: Door, name: str, fields: dict[str, Any]):
    """Recorded once and read by eye; only ids and times may differ."""
    with script.http as client:
        headers = {"x-request-id": "golden"}
        reply = client.post(CHAT, json={"messages": EN, "stream": True, **fields}, headers=headers)

    text = re.sub(r"chatcmpl-\w{24}", "chatcmpl-ID", re.sub(r'"created":\d+', '"created":0', reply.text))
    assert (
        re.sub(r"fp_\w{12}", "fp_VERSION", text).replace(": keep-alive\n\n", "") == (GOLDEN / f"{name}.sse").read_text()
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert (reply.headers["cache-control"], reply.headers["x-vc-version"]) == ("no-cache", "v1")


def test_a_stream_that_breaks_raises_in_the_sdk(script: Door):
    """What was sent before it is there; nothing pretends to be the end."""
    with script.sdk() as client:
        stream = create(client, messages=[{"role": "user", "content": "break"}], stream=True)
        chunks = []

        with pytest.raises(openai.APIError, match="Something went wrong here"):
            for chunk in stream:
                chunks.append(chunk)

    assert texts(chunks) == ["".join(TOKENS[:3])]
    assert all(choice.finish_reason is None for chunk in chunks for choice in chunk.choices)


def test_silence_is_filled_and_the_sdk_does_not_mind(script: Door):
    """Comments while nothing is written; the text is whole."""
    silent: dict[str, Any] = {"messages": [{"role": "user", "content": "silent"}], "stream": True}
    with script.http as client, script.sdk() as sdk:
        raw = client.post(CHAT, json=silent).text
        chunks = list(create(sdk, **silent))

    assert raw.count(": keep-alive\n\n") >= 2
    assert texts(chunks) == ["".join(TOKENS)]


# Models


def test_the_sdk_lists_and_retrieves_models(model: Door):
    """The fixed name and the promoted version, with where it comes from and what it holds."""
    with model.sdk() as client:
        listed = {each.id: each for each in client.models.list()}
        one = client.models.retrieve("v1")

        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("v9")

    assert one == listed["v1"] and one.created == 1700000000 and one.object == "model"
    extra = one.model_extra or {}
    assert (extra["parent"], extra["alias"]) == (None, ["current"])
    assert re.fullmatch("[0-9a-f]{64}", extra["checksum"])
    fixed = listed["vc-llm"]
    assert (fixed.created, (fixed.model_extra or {})["parent"]) == (1700000000, "v1")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


# Refusals


@pytest.mark.parametrize("name", ["v9", "gpt-4o", "GPT-4 Turbo", "../v1"])
def test_an_unknown_model_is_not_found(model: Door, name: str):
    """Whatever the name looks like, for chats whole and streamed."""
    with model.sdk() as client:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as refused:
                create(client, model=name, stream=stream)
            assert refused.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error(model: Door):
    """The SDK's own class for it."""
    with model.sdk(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        create(client)


USER = {"role": "user", "content": "x"}
WRONG: dict[str, tuple[Any, str, str]] = {
    "no messages": ({"messages": []}, "messages", "too_short"),
    "null messages": ({"messages": None}, "messages", "missing"),
    "unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "literal_error"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        "messages.0.content",
        "unsupported_content",
    ),
    "name": ({"messages": [{**USER, "name": "Eve"}]}, "messages.0.name", "unsupported_parameter"),
    "no answers": ({"n": 0}, "n", "greater_than_equal"),
    "too many answers": ({"n": 10_000}, "n", "less_than_equal"),
    "negative temperature": ({"temperature": -1}, "temperature", "greater_than_equal"),
    "huge seed": ({"seed": 2**63}, "seed", "less_than"),
    "five stops": ({"stop": list("abcde")}, "stop", "too_long"),
    "bias of a word": ({"logit_bias": {"word": 1}}, "logit_bias.word.[key]", "int_parsing"),
    "bias beyond 100": ({"logit_bias": {"5": 101}}, "logit_bias.5", "less_than_equal"),
    "21 alternatives": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less_than_equal"),
    "alternatives alone": ({"top_logprobs": 2}, "top_logprobs", "needs_logprobs"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    "penalty": ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
    "JSON only": ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    "a typing error": ({"temprature": 0}, "temprature", "unsupported_parameter"),
    "too long": (
        {"messages": [{"role": "user", "content": "word " * 3000}]},
        "messages",
        "context_length_exceeded",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_a_bad_request_that_names_it(model: Door, case: str):
    """In the SDK's class, with the field and a code."""
    fields, param, code = WRONG[case]
    with model.sdk() as client, pytest.raises(openai.BadRequestError) as refused:
        create(client, model=openai.omit, extra_body=fields)

    assert (refused.value.param, refused.value.code) == (param, code)


def json_of(**fields: str) -> bytes:
    """Fields as they are, beside a message."""
    given = {"messages": '[{"role": "user", "content": "x"}]', **fields}
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in given.items()) + "}").encode()


MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "invalid_json"),
    "broken": (b'{"messages": [', 400, "invalid_json"),
    "not UTF-8": (json_of(user='"\xff"').replace("ÿ".encode(), b"\xff"), 400, "invalid_json"),
    "half a character": (json_of(messages='[{"role": "user", "content": "\\ud800"}]'), 400, "invalid_json"),
    "deeply nested": (json_of(metadata="[" * 100_000 + "]" * 100_000), 400, "invalid_json"),
    "a number of 5,000 digits": (json_of(seed="9" * 5000), 400, "invalid_json"),
    "not a number": (json_of(temperature="NaN"), 400, "finite_number"),
    "infinite": (json_of(logit_bias='{"5": -Infinity}'), 400, "finite_number"),
    "no object": (b'["x"]', 400, "model_type"),
    "10 MB": (json_of(user='"' + "x" * 10_000_000 + '"'), 413, "request_too_large"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_is_refused_in_words(model: Door, case: str):
    """Never a 500, and the next request is served."""
    body, status, code = MALFORMED[case]
    with model.http as client:
        reply = client.post(CHAT, content=body, headers={"content-type": "application/json"})
        after = client.post(CHAT, json={"messages": EN, "max_tokens": 1})

    assert error_of(reply, status)["code"] == code
    assert after.status_code == 200


def test_what_the_framework_refuses_has_the_same_body(model: Door):
    """A path that is not there, a method that is not taken, a body that is no JSON."""
    with model.http as client:
        missing, method = client.get("/v2/chat"), client.put(CHAT, json={})
        form = client.post(CHAT, data={"model": "v1"})

    assert error_of(missing, 404)["code"] == "not_found"
    assert error_of(method, 405)["code"] == "method_not_allowed" and method.headers["allow"] == "POST"
    assert error_of(form, 415)["code"] == "unsupported_media_type"


def test_what_changes_nothing_is_accepted(doors: Doors, script: Door):
    """The values that frameworks send unasked; the engine is told nothing of them."""
    neutral: dict[str, Any] = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
        "n": None,
        "stop": None,
        "stream_options": None,
        "functions": None,
        "user": "u-1",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    with script.http as client:
        plain = client.post(CHAT, json={"messages": EN})
        dressed = client.post(CHAT, json={"messages": EN, **neutral})

    assert (plain.status_code, dressed.status_code) == (200, 200)
    assert doors.script.asked[-2] == doors.script.asked[-1]


def test_a_body_that_drips_is_given_up(doors: Doors, way: str):
    """408 after the time allowed, however many bytes keep coming; others are answered meanwhile."""
    door = doors[way, "script"]
    host, port = door.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.key}\r\ncontent-length: 1000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as slow, door.http as client:
        slow.sendall(head.encode())
        begun = time.monotonic()
        meanwhile = []
        while time.monotonic() < begun + BODY_TIMEOUT_S - 0.1:
            slow.sendall(b" ")
            meanwhile.append(client.post(CHAT, json={"messages": EN}).status_code)
            time.sleep(0.05)
        reply = b"".join(iter(lambda: slow.recv(65536), b""))

    assert reply.startswith(b"HTTP/1.1 408 ") and b"connection: close" in reply
    assert json.loads(reply.split(b"\r\n\r\n")[1])["error"]["code"] == "request_timeout"
    assert set(meanwhile) == {200}


# Patience


def test_the_sdk_comes_back_when_it_was_told_to(doors: Doors, script: Door):
    """429 with retry-after-ms: a retry after that time, no sooner, and the answer."""
    doors.script.refusals, already = 1, len(doors.script.times)
    with script.sdk(max_retries=1) as client:
        reply = create(client)

    refused, answered = doors.script.times[already:]
    assert reply.choices[0].message.content == "".join(TOKENS)
    assert 0.2 <= answered - refused < 2


def test_without_retries_a_full_server_is_a_rate_limit_error(doors: Doors, script: Door):
    """With the time to come back in the reply's headers."""
    doors.script.refusals = 1
    with script.sdk() as client, pytest.raises(openai.RateLimitError) as refused:
        create(client)

    assert refused.value.response.headers["retry-after-ms"] == "200"
    assert refused.value.code == "rate_limit_exceeded"


def test_a_client_that_has_no_patience_gets_its_own_timeout(script: Door):
    """And the server goes on serving."""
    with script.sdk() as client:
        with pytest.raises(openai.APITimeoutError):
            create(client, messages=[{"role": "user", "content": "silent"}], timeout=0.1)

        assert create(client).choices[0].message.content == "".join(TOKENS)
