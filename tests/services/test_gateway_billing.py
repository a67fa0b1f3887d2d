"""What a chat costs its key: what the Actor counted, whole or streamed; what never began costs nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from gateway.relay import Relay
from tests.fake_actor import FakeActor
from tests.gateway_world import PEPPER, Gateway, chat_body, error_of, gateway_on
from tests.servers import serve_redis, wait_until
from vcllm.contracts.keys import KeyLimits, Scope
from vcllm.stores.api_keys import KeyStore
from vcllm.web.sse import DONE
from vcllm.web.usage import usage_comment

CHAT = "/v1/chat/completions"
LIMIT = 1000
COST = 5
"""Tokens of every whole answer of the Actor here, its prompt included."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home: Path = tmp_path_factory.mktemp("billing")
    with serve_redis(home) as redis, gateway_on(redis.url, home, FakeActor()) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """With a fresh key that has a limit on tokens, so that replies tell what is left of it."""
    limits = KeyLimits(tokens_per_minute=LIMIT, concurrent_chats=1)
    key, _ = KeyStore(gateway.redis, PEPPER).create("billed", [Scope.CHAT], limits=limits)
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=10, verify=False) as client:
        yield client


def left(client: httpx.Client) -> int:
    """Tokens left before the request that asks for it."""
    reply = client.post(CHAT, json=chat_body(max_tokens=1))
    assert reply.status_code == 200
    return int(reply.headers["x-ratelimit-remaining-tokens"]) + COST


def test_a_whole_answer_costs_what_the_actor_counted(client: httpx.Client):
    """Not what was guessed when it was let in."""
    reply = client.post(CHAT, json=chat_body(max_tokens=900))

    assert reply.headers["x-ratelimit-limit-tokens"] == str(LIMIT)
    assert reply.headers["x-ratelimit-remaining-tokens"] == str(LIMIT - COST)


def test_a_stream_costs_what_the_actor_counted(client: httpx.Client):
    """Its client did not ask for the usage, and does not see how the gateway learned it."""
    reply = client.post(CHAT, json=chat_body(max_tokens=900, stream=True))

    assert reply.text.endswith("data: [DONE]\n\n")
    assert "usage" not in reply.text
    assert left(client) == LIMIT - COST


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_actor_refuses_costs_nothing(client: httpx.Client, stream: bool):
    """It was let in for nine hundred tokens, and used none."""
    error_of(client.post(CHAT, json=chat_body("refuse", max_tokens=900, stream=stream)), 400)

    assert left(client) == LIMIT


def test_a_stream_that_is_left_costs_what_was_passed_on(gateway: Gateway, client: httpx.Client):
    """Whoever hangs up before the end has not had it for nothing, nor pays for all that could have come."""
    cancelled = gateway.actor.cancelled
    with client.stream("POST", CHAT, json=chat_body("slow", max_tokens=900, stream=True)) as reply:
        next(reply.iter_raw())
    wait_until(lambda: gateway.actor.cancelled > cancelled)

    assert LIMIT - 100 < left(client) < LIMIT


def test_a_whole_answer_that_is_left_costs_its_prompt(gateway: Gateway, client: httpx.Client):
    """The Actor has read it, and stops; what it had written nobody has seen."""
    cancelled = gateway.actor.cancelled
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=chat_body("slow", max_tokens=900), timeout=0.3)
    wait_until(lambda: gateway.actor.cancelled > cancelled)

    assert LIMIT - 100 < left(client) < LIMIT


def test_the_count_is_taken_out_of_a_stream_wherever_it_is_cut():
    """The Actor's comment and its `[DONE]` in one piece or in several: the bill is the same, the comment unseen."""
    frames = b'data: {"x":1}\n\n' * 3
    for cut in range(1, len(frames + usage_comment(40, 700) + DONE)):
        whole = frames + usage_comment(40, 700) + DONE
        billed: list[int | None] = []
        bill: Any = SimpleNamespace(settle=billed.append, close=lambda: None, num_frames=0)

        assert asyncio.run(relayed([whole[:cut], whole[cut:]], bill)) == frames + DONE
        assert billed == [740]


async def relayed(pieces: list[bytes], bill: Any) -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    exchange: Any = SimpleNamespace(chunks=chunks)
    return b"".join([frames async for frames in Relay(exchange, bill, AsyncExitStack())])


def test_what_would_cost_too_much_is_refused_before_the_actor_hears_of_it(gateway: Gateway, client: httpx.Client):
    """The reply says what is left and when to come back."""
    seen = len(gateway.actor.seen)
    client.post(CHAT, json=chat_body(max_tokens=10))
    reply = client.post(CHAT, json=chat_body(max_tokens=999))

    assert error_of(reply, 429)["code"] == "rate_limit_exceeded"
    assert int(reply.headers["retry-after-ms"]) > 0
    assert reply.headers["x-ratelimit-remaining-tokens"] == str(LIMIT - COST)
    assert len(gateway.actor.seen) == seen + 1


def test_a_place_is_free_again_after_each_way_out(client: httpx.Client):
    """The key may have one chat at a time: after an answer, a stream, a refusal and a bug it still may."""
    for text in ("hello", "refuse", "bug", "hello"):
        for stream in (False, True):
            reply = client.post(CHAT, json=chat_body(text, max_tokens=1, stream=stream))
            assert reply.status_code != 429


def test_whoever_has_the_last_frame_may_ask_again_at_once(client: httpx.Client):
    """With one chat at a time: the place must be free before the end of a stream is known."""
    statuses = {client.post(CHAT, json=chat_body(max_tokens=1, stream=True)).status_code for _ in range(60)}

    assert statuses == {200}


def test_the_actor_is_asked_for_usage_in_streams_only(gateway: Gateway, client: httpx.Client):
    """A whole reply has it anyway."""
    client.post(CHAT, json=chat_body(stream=True))
    client.post(CHAT, json=chat_body())

    (_, streamed), (_, whole) = gateway.actor.seen[-2:]
    assert "x-vc-usage" in streamed
    assert "x-vc-usage" not in whole


def test_redis_is_not_asked_for_each_chat(gateway: Gateway):
    """Gateways tell each other what was spent about once a second, however many chats there are in between."""
    client, redis, num_chats = gateway[Scope.CHAT], gateway.redis, 1000
    client.post(CHAT, json=chat_body())
    before = redis.info("stats")["total_commands_processed"]
    for _ in range(num_chats):
        assert client.post(CHAT, json=chat_body()).status_code == 200

    assert redis.info("stats")["total_commands_processed"] - before < num_chats / 2


def test_refusals_are_counted_by_what_was_used_up(gateway: Gateway, client: httpx.Client):
    """For whoever watches over several gateways."""
    client.post(CHAT, json=chat_body(max_tokens=10))
    client.post(CHAT, json=chat_body(max_tokens=999))

    told = gateway[Scope.ADMIN].get("/metrics").text
    assert re.search(r'^vc_rejected_total\{reason="tokens"\} [1-9]', told, re.MULTILINE)
