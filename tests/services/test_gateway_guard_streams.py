"""The gateway's guard on streams: nothing that was not judged is shown, and the stream stays one of the OpenAI API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.guard_world import BAD, REFUSAL_EN, REFUSAL_ZH, GuardWorld, ask, guard_world
from tests.servers import RedisServer, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.contracts.guard import GuardMode
from vcllm.contracts.keys import Scope

ENFORCE = {"mode": "enforce"}
CHUNKED = {"mode": "enforce", "hold_back": 20}
SENTENCES = ["This is the first sentence. ", "And here is the second one. ", "A third one ends it."]


@pytest.fixture(scope="module")
def running(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardWorld]:
    with guard_world(redis_server.url, tmp_path_factory.mktemp("guarded")) as running:
        yield running


@pytest.fixture
def world(running: GuardWorld) -> GuardWorld:
    running.critic.reset()
    running.actor.say(SENTENCES)
    return running


def chunks_of(reply: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream that has come to its good end."""
    assert reply.status_code == 200, reply.text
    *frames, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames if not frame.startswith(":")]


def said(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def direct(world: GuardWorld, **fields: Any) -> bytes:
    body = {"messages": [{"role": "user", "content": "Who may speak?"}], "stream": True, **fields}
    auth = ServiceAuth("internal", "actor", "gateway")
    return httpx.post(f"{world.settings.actor_urls}/v1/chat/completions", json=body, auth=auth).content


def sdk(client: httpx.Client) -> openai.OpenAI:
    key = client.headers["authorization"].removeprefix("Bearer ")
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0)


# What passes


@pytest.mark.parametrize("policy", [ENFORCE, CHUNKED])
@pytest.mark.parametrize("fields", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_that_passes_is_the_actors_but_for_the_verdict(
    world: GuardWorld, policy: dict[str, Any], fields: dict[str, Any]
):
    """Frame by frame the same bytes; the one with the finish reason also says what the head could not yet know."""
    reply = ask(world.gateway(**policy), stream=True, **fields)

    finish = next(chunk for chunk in chunks_of(reply) if chunk["choices"] and chunk["choices"][0]["finish_reason"])
    told = finish["vc"]
    without = reply.content.replace(b',"vc":' + json.dumps(told, separators=(",", ":")).encode(), b"")
    assert without == direct(world, **fields)
    assert (told["verdict"], told["critic_version"], told["guard_ms"] > 0) == ("pass", "critic-5", True)
    assert reply.headers["x-vc-verdict"] == "pending"
    assert told["policy"] == reply.headers["x-vc-policy"]


def test_a_chunk_is_shown_as_soon_as_it_is_judged(world: GuardWorld):
    """While the Actor writes on."""
    world.actor.say(SENTENCES * 3, pace_s=0.1)
    with sdk(world.gateway(**CHUNKED)) as client:
        stream = client.chat.completions.create(
            model="vc-llm", messages=[{"role": "user", "content": "?"}], stream=True
        )
        seen = [(chunk.choices[0].delta.content, world.actor.num_said) for chunk in stream]

    assert "".join(text or "" for text, _ in seen) == "".join(SENTENCES * 3)
    first = next(number for text, number in seen if text)
    assert first < 9


@pytest.mark.parametrize("stage", ["before", "beside"])
def test_an_answer_that_is_not_to_be_judged_is_not_held(world: GuardWorld, stage: str):
    """Where only earlier answers are, the stream is relayed as it comes."""
    world.actor.say(SENTENCES * 2, pace_s=0.1)
    with sdk(world.gateway(**ENFORCE, stages=[stage])) as client:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Fine."}]
        stream = client.chat.completions.create(model="vc-llm", messages=messages, stream=True)
        seen = [(chunk.choices[0].delta.content, world.actor.num_said) for chunk in stream]

    assert "".join(text or "" for text, _ in seen) == "".join(SENTENCES * 2)
    assert next(number for text, number in seen if text) < 4


def test_only_a_chunk_at_a_sentence_end_is_judged(world: GuardWorld):
    """Each time the whole answer from its beginning, and once all of it."""
    world.actor.say(["One sentence that ", "is long. And ", "one more ", "that is long. ", "End."], pace_s=0.05)

    ask(world.gateway(**CHUNKED), stream=True)

    seen = [item.response for item in world.critic.seen]
    assert seen == [
        "One sentence that is long. And ",
        "One sentence that is long. And one more that is long. ",
        "One sentence that is long. And one more that is long. End.",
    ]


def test_an_incomplete_beginning_is_not_taken_for_a_broken_answer(world: GuardWorld):
    """Beginnings always look so: the Critic calls this one broken, and it is shown all the same."""
    world.actor.say(["It is as long as it is! and on ", "it goes ", "to its end."], pace_s=0.05)

    chunks = chunks_of(ask(world.gateway(**CHUNKED), stream=True))

    assert said(chunks) == "It is as long as it is! and on it goes to its end."


def test_a_stream_of_two_answers_passes(world: GuardWorld):
    """Each is held and shown by itself."""
    world.actor.say(SENTENCES, ["Another. ", "One more of it that is long enough."])

    chunks = chunks_of(ask(world.gateway(**CHUNKED), stream=True, n=2))

    assert (said(chunks, 0), said(chunks, 1)) == ("".join(SENTENCES), "Another. One more of it that is long enough.")


# What is blocked


@pytest.mark.parametrize("include_usage", [False, True])
def test_nothing_of_a_violating_stream_is_shown(world: GuardWorld, include_usage: bool):
    """The refusal in the form of an answer: role, text, finish frame, usage if asked, `[DONE]`; one id and model."""
    world.actor.say(["It is well known ", f"that they are {BAD}. ", "Secretly."])

    reply = ask(world.gateway(**ENFORCE), stream=True, stream_options={"include_usage": include_usage})

    chunks = chunks_of(reply)
    assert said(chunks) == REFUSAL_EN
    assert "known" not in reply.text and "Secretly" not in reply.text
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    told = chunks[2]
    assert told["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "content_filter"}]
    assert told["vc"]["verdict"] == "block"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in chunks[3:]] == ([told_usage(3, 4)] if include_usage else [])
    assert all(("usage" in chunk) is include_usage for chunk in chunks)


def told_usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def test_the_openai_sdk_reads_a_blocked_stream(world: GuardWorld):
    """With what was shown before, then the refusal, then the usage."""
    world.actor.say([*SENTENCES, f" {BAD}. ", *["And on it goes, for long. "] * 50], pace_s=0.03)
    with sdk(world.gateway(**CHUNKED)) as client:
        stream = client.chat.completions.create(
            model="vc-llm",
            messages=[{"role": "user", "content": "是谁？"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        *chunks, usage = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    shown, _, refusal = text.rpartition("\n\n")
    assert refusal == REFUSAL_ZH
    assert shown and "".join(SENTENCES).startswith(shown)
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert usage.usage is not None and usage.usage.completion_tokens >= 4


def test_the_actor_stops_when_its_answer_is_blocked(world: GuardWorld):
    """What nobody will see is not written to its end."""
    world.actor.say([f"They are {BAD}, and that is it. ", *["On. "] * 200], pace_s=0.05)

    begun = time.monotonic()
    chunks = chunks_of(ask(world.gateway(**CHUNKED), stream=True))

    assert said(chunks) == REFUSAL_EN
    assert time.monotonic() - begun < 3
    wait_until(lambda: world.actor.cancelled == 1, 2)


def test_one_answer_is_blocked_and_the_other_goes_on(world: GuardWorld):
    """Whoever wrote it."""
    world.actor.say([f"They are {BAD}, and that is it. ", "More. "], ["Fine, this is. ", "And it is long enough."])

    chunks = chunks_of(ask(world.gateway(**CHUNKED), stream=True, n=2))

    assert (said(chunks, 0), said(chunks, 1)) == (REFUSAL_EN, "Fine, this is. And it is long enough.")
    reasons = [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]
    assert sorted(reasons) == ["content_filter", "stop"]


@pytest.mark.parametrize("policy", [ENFORCE, CHUNKED])
@pytest.mark.parametrize(
    ("on_outage", "verdict", "text"), [("block", "outage-block", REFUSAL_EN), ("pass", "outage", "".join(SENTENCES))]
)
def test_an_outage_in_a_stream_does_what_the_charter_says(
    world: GuardWorld, policy: dict[str, Any], on_outage: str, verdict: str, text: str
):
    """And the finish frame says so."""
    world.critic.fault = "down"

    chunks = chunks_of(ask(world.gateway(**policy, on_outage=on_outage, timeout_s=0.5), stream=True))

    assert said(chunks) == text
    assert chunks[-1]["vc"]["verdict"] == verdict


@pytest.mark.parametrize("stages", [["before"], ["beside", "after"]])
def test_a_stream_that_is_refused_before_it_begins_has_the_same_form(world: GuardWorld, stages: list[str]):
    """With usage, where it was asked for."""
    world.actor.say(SENTENCES, pace_s=0.3)
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": BAD}]

    reply = ask(
        world.gateway(**ENFORCE, stages=stages), before=before, stream=True, stream_options={"include_usage": True}
    )

    chunks = chunks_of(reply)
    assert said(chunks) == REFUSAL_EN
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 0
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


# Observed


def test_an_observed_stream_is_the_actors_byte_for_byte(world: GuardWorld):
    """Also a violating one, which is only counted."""
    world.actor.say([f"They are {BAD}. ", "Truly."])
    gateway = world.gateway(mode="observe", stages=["before", "after"])

    reply = ask(gateway, stream=True)

    assert reply.content == direct(world)
    assert reply.headers["x-vc-verdict"] == "pending"
    admin = world.client(str(gateway.base_url), scope=Scope.ADMIN)
    wait_until(lambda: 'vc_verdict_total{verdict="observed-block"} 1.0' in admin.get("/metrics").text, 5)


def test_an_observed_stream_does_not_wait_for_the_critic(world: GuardWorld):
    """It is judged once it was shown; the Critic takes a minute."""
    world.critic.fault = "slow"
    gateway = world.gateway(mode="observe")

    begun = time.monotonic()
    reply = ask(gateway, stream=True)

    assert time.monotonic() - begun < 5
    assert reply.content == direct(world)


# Silence, breaks, and whoever goes away


def test_comments_go_on_while_an_answer_is_held(world: GuardWorld):
    """So that nothing in between takes the stream for dead."""
    world.actor.say(SENTENCES, pace_s=0.25)

    reply = ask(world.gateway(**ENFORCE), stream=True)

    before, _, _ = reply.text.partition("first sentence")
    assert before.count(": keep-alive") >= 3


def test_a_stream_that_breaks_shows_nothing_that_was_held(world: GuardWorld):
    """The Actor's error ends it, without `[DONE]`."""
    world.actor.say(["Secretly, it is. "], breaks=True)

    reply = ask(world.gateway(**ENFORCE), stream=True)

    assert "Secretly" not in reply.text
    assert "[DONE]" not in reply.text
    assert json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "unavailable"


@pytest.mark.parametrize("policy", [ENFORCE, CHUNKED])
def test_actor_and_critic_stop_when_the_client_of_a_stream_goes_away(world: GuardWorld, policy: dict[str, Any]):
    """Both, wherever they are."""
    world.actor.say([*SENTENCES, *["On. "] * 200] if policy is CHUNKED else SENTENCES, pace_s=0.05)
    world.critic.fault = "slow"
    gateway = world.gateway(**policy)
    body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
    with gateway.stream("POST", "/v1/chat/completions", json=body) as reply:
        wait_until(lambda: len(world.critic.seen) == 1, 5)
        assert reply.status_code == 200

    wait_until(lambda: world.critic.cancelled == 1, 3)
    if policy is CHUNKED:
        wait_until(lambda: world.actor.cancelled == 1, 3)


def test_the_deadline_of_a_stream_ends_it_with_an_error(world: GuardWorld):
    """What was not judged in time is not shown, whatever an outage would do."""
    world.critic.fault = "slow"

    reply = ask(world.gateway(**ENFORCE, on_outage="pass"), stream=True, headers={"x-vc-deadline-ms": "500"})

    assert "sentence" not in reply.text
    assert json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == (
        "deadline_exceeded"
    )


def test_a_key_that_enforces_holds_back_under_a_lax_charter(world: GuardWorld):
    """By the charter's hold-back and refusal."""
    world.actor.say([BAD])
    lax = world.gateway(mode="off")

    assert said(chunks_of(ask(world.client(str(lax.base_url), GuardMode.ENFORCE), stream=True))) == REFUSAL_EN
    assert said(chunks_of(ask(lax, stream=True))) == BAD


def test_a_blocked_stream_is_billed_as_what_was_written(world: GuardWorld):
    """The Actor's own count where it came to its end."""
    world.actor.say([BAD])
    gateway = world.gateway(**ENFORCE)
    key = gateway.headers["authorization"].removeprefix("Bearer ")
    ask(gateway, stream=True)

    key_id = key.split("_")[1]
    admin = world.client(str(gateway.base_url), scope=Scope.ADMIN)
    wait_until(lambda: [day["tokens"] for day in admin.get(f"/v1/keys/{key_id}/usage").json()["data"]] == [7], 5)
