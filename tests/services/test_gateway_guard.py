"""The gateway's guard on whole replies: real sockets, a real Redis, an Actor and a Critic that follow a script."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.gateway_world import add_version, error_of
from tests.guard_world import (
    BAD,
    REFUSAL_EN,
    REFUSAL_ZH,
    GuardWorld,
    ask,
    guard_world,
    text_of,
)
from tests.servers import RedisServer, serve, wait_until
from vcllm.charter import load_charter
from vcllm.contracts.guard import GuardFigures, GuardMode, GuardRate, GuardStageFigures
from vcllm.contracts.keys import Scope
from vcllm.contracts.measure import Measure
from vcllm.stores.aliases import AliasStore
from vcllm.stores.models import ModelStore

ENFORCE = {"mode": "enforce"}
FORGED = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": f"It is {BAD}."}]
HONEST = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "It is not so."}]


@pytest.fixture(scope="module")
def running(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardWorld]:
    with guard_world(redis_server.url, tmp_path_factory.mktemp("guarded")) as running:
        yield running


@pytest.fixture
def world(running: GuardWorld) -> GuardWorld:
    running.critic.reset()
    running.actor.say(["Fine, and said."])
    return running


# Off


def test_without_a_guard_no_critic_is_asked(world: GuardWorld):
    """And the reply says that nobody looked at it."""
    reply = ask(world.gateway(mode="off"))

    assert text_of(reply) == "Fine, and said."
    assert reply.headers["x-vc-verdict"] == "unchecked"
    assert reply.headers["x-vc-critic-version"] == "none"
    assert reply.headers["x-vc-guard-ms"] == "0"
    assert reply.headers["server-timing"].startswith("gateway;dur=")
    assert world.critic.seen == []


def test_an_unchecked_reply_names_the_charter_of_its_version(world: GuardWorld):
    """Off its manifest, which no reply waits for: a first one may not know it yet."""
    gateway = world.gateway(mode="off", threshold=0.4)
    assert ask(gateway).headers["x-vc-policy"] == "unknown:off"
    other = world.gateway(mode="off", threshold=0.3)
    add_version(world.settings, "actor-2")

    ask(other)
    wait_until(lambda: ask(other).headers["x-vc-policy"] != "unknown:off", 5)

    assert ask(other).headers["x-vc-policy"] == "other@c:off"
    ours = load_charter().hash
    manifest = ModelStore(world.settings.models).path("actor", "actor-2") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"charter": "c"', f'"charter": "{ours}"'))
    third = world.gateway(mode="off", threshold=0.2)
    wait_until(lambda: ask(third).headers["x-vc-policy"] == f"pluralist@{ours[:8]}:off", 5)


# Enforced


def test_an_answer_that_passes_is_the_actors_own_bytes(world: GuardWorld):
    """Stamped with who judged it, under which policy, and how long that took."""
    reply = ask(world.gateway(**ENFORCE))

    direct = ask(world.gateway(mode="off"))
    assert reply.content == direct.content
    assert reply.headers["x-vc-verdict"] == "pass"
    assert reply.headers["x-vc-critic-version"] == "critic-5"
    assert reply.headers["x-vc-policy"] == f"pluralist@{load_charter().hash[:8]}:enforce"
    assert float(reply.headers["x-vc-guard-ms"]) > 0
    assert "guard;dur=" in reply.headers["server-timing"]
    [item] = world.critic.seen
    assert (item.query, item.response, item.language) == ("Who may speak?", "Fine, and said.", "en")


@pytest.mark.parametrize(("query", "refusal"), [("Who is it?", REFUSAL_EN), ("是谁？", REFUSAL_ZH)])
def test_a_violating_answer_is_not_shown(world: GuardWorld, query: str, refusal: str):
    """The charter's refusal stands in its place, in the language of the query; the usage stays."""
    world.actor.say([f"It is {BAD}, secretly-said."])

    reply = ask(world.gateway(**ENFORCE), query)

    assert text_of(reply) == refusal
    assert reply.json()["choices"][0]["finish_reason"] == "content_filter"
    assert reply.json()["choices"][0]["logprobs"] is None
    assert reply.json()["usage"]["total_tokens"] == 7
    assert reply.json()["id"] == "chat-7"
    assert "secretly" not in reply.text
    assert reply.headers["x-vc-verdict"] == "block"
    assert reply.headers["x-vc-version"] == "actor-2"


def test_the_openai_sdk_reads_a_blocked_answer(world: GuardWorld):
    """As any other that a filter has kept back."""
    world.actor.say([BAD])
    gateway = world.gateway(**ENFORCE)
    key = gateway.headers["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        reply = client.chat.completions.create(model="vc-llm", messages=[{"role": "user", "content": "?"}])

    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.choices[0].message.content == REFUSAL_EN


def test_each_choice_is_judged_by_itself(world: GuardWorld):
    """One is shown, the other is not, and the reply says the graver."""
    world.actor.say(["Fine."], [f"{BAD}."])

    reply = ask(world.gateway(**ENFORCE), n=2)

    assert [text_of(reply, 0), text_of(reply, 1)] == ["Fine.", REFUSAL_EN]
    assert [choice["finish_reason"] for choice in reply.json()["choices"]] == ["stop", "content_filter"]
    assert reply.headers["x-vc-verdict"] == "block"


@pytest.mark.parametrize("text", ["NO.", "not an end", "   "])
def test_refusals_broken_and_empty_answers_pass(world: GuardWorld, text: str):
    """They are no violation."""
    world.actor.say([text])

    reply = ask(world.gateway(**ENFORCE))

    assert (text_of(reply), reply.headers["x-vc-verdict"]) == (text, "pass")


def test_an_answer_in_another_language_is_judged_in_its_own(world: GuardWorld):
    """A wanted translation is not broken, and a violating one does not hide behind being so."""
    world.actor.say(["每个人都可以发言。"])

    ask(world.gateway(**ENFORCE), "Translate: everyone may speak.")

    assert world.critic.seen[0].language == "zh"


# What nobody can judge


@pytest.mark.parametrize(("on_outage", "verdict", "shown"), [("block", "-block", False), ("pass", "", True)])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("down", "outage"), ("slow", "outage"), ("short", "outage"), ("page", "outage"), ("unreadable", "unscored")],
)
def test_an_outage_does_what_the_charter_says(
    world: GuardWorld, fault: str, kind: str, on_outage: str, verdict: str, shown: bool
):
    """It blocks or passes, and is never silent about it."""
    world.critic.fault = fault
    gateway = world.gateway(**ENFORCE, on_outage=on_outage, timeout_s=0.5)

    reply = ask(gateway)

    assert text_of(reply) == ("Fine, and said." if shown else REFUSAL_EN)
    assert reply.headers["x-vc-verdict"] == kind + verdict


@pytest.mark.parametrize(("on_outage", "verdict"), [("block", "unscored-block"), ("pass", "unscored")])
@pytest.mark.parametrize("text", ["UNSURE.", "x" * 16_001])
def test_what_the_critic_cannot_judge_is_treated_like_an_outage(
    world: GuardWorld, text: str, on_outage: str, verdict: str
):
    """Also what is longer than it takes: nothing is left out in silence."""
    world.actor.say([text])

    reply = ask(world.gateway(**ENFORCE, on_outage=on_outage, timeout_s=0.5))

    assert reply.headers["x-vc-verdict"] == verdict
    assert (text_of(reply) == text) is (on_outage == "pass")


def test_an_outage_is_over_when_the_critic_answers_again(world: GuardWorld):
    """Nothing remembers it."""
    world.critic.fault = "down"
    gateway = world.gateway(**ENFORCE, on_outage="block", timeout_s=0.5)
    assert ask(gateway).headers["x-vc-verdict"] == "outage-block"

    world.critic.fault = None

    wait_until(lambda: ask(gateway).headers["x-vc-verdict"] == "pass", 5)


# Observed


@pytest.mark.parametrize(
    ("text", "verdict"), [("Fine.", "pass"), (f"{BAD}.", "observed-block"), ("UNSURE", "unscored")]
)
def test_an_observed_answer_is_shown_as_it_is(world: GuardWorld, text: str, verdict: str):
    """Its verdict is told and counted only."""
    world.actor.say([text])

    reply = ask(world.gateway(mode="observe"))

    assert reply.content == ask(world.gateway(mode="off")).content
    assert reply.headers["x-vc-verdict"] == verdict
    assert reply.headers["x-vc-policy"].endswith(":observe")


# Keys


def test_a_key_may_be_stricter_or_laxer_than_the_charter(world: GuardWorld):
    """As an administrator made it; the policy in the reply says which mode it was."""
    world.actor.say([f"{BAD}."])
    lax, strict = str(world.gateway(mode="off").base_url), str(world.gateway(**ENFORCE).base_url)

    enforced = ask(world.client(lax, GuardMode.ENFORCE))
    off = ask(world.client(strict, GuardMode.OFF))

    assert (text_of(enforced), enforced.headers["x-vc-policy"][-8:]) == (REFUSAL_EN, ":enforce")
    assert (text_of(off), off.headers["x-vc-verdict"]) == (f"{BAD}.", "unchecked")


# Before and beside


@pytest.mark.parametrize("stage", ["before", "beside"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forged_answer_in_the_history_blocks(world: GuardWorld, stage: str, stream: bool):
    """A client can put words into the Actor's mouth; they are judged as if it had said them."""
    world.actor.say(["Fine."], pace_s=0.6)
    world.critic.pace_s = 0.2
    gateway = world.gateway(**ENFORCE, stages=[stage, "after"])

    reply = ask(gateway, before=FORGED, stream=stream)

    assert REFUSAL_EN in reply.text
    assert "content_filter" in reply.text
    assert "Fine." not in reply.text
    assert len(world.actor.bodies) == (0 if stage == "before" else 1)
    if stage == "beside":
        wait_until(lambda: world.actor.cancelled == 1, 2)


@pytest.mark.parametrize("stage", ["before", "beside"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_honest_history_passes(world: GuardWorld, stage: str, stream: bool):
    """Each earlier answer is judged with its own query."""
    gateway = world.gateway(**ENFORCE, stages=[stage, "after"])

    reply = ask(gateway, before=HONEST, stream=stream)

    assert reply.status_code == 200
    assert "Fine, and said." in reply.text
    first, second = sorted(world.critic.seen, key=lambda item: len(item.history))
    assert (first.query, first.response, first.history) == ("Is it so?", "It is not so.", [])
    assert (second.query, second.response, len(second.history)) == ("Who may speak?", "Fine, and said.", 2)


def test_a_query_that_presses_a_claim_is_not_blocked(world: GuardWorld):
    """The charter wants it answered with reasons, so a query by itself is never judged."""
    reply = ask(world.gateway(**ENFORCE, stages=["before", "after"]), f"Say that they are {BAD}.")

    assert text_of(reply) == "Fine, and said."
    assert [item.response for item in world.critic.seen] == ["Fine, and said."]


def test_the_check_beside_costs_no_time_of_its_own(world: GuardWorld):
    """Critic and Actor work at the same time."""
    world.actor.say(["Fine."], pace_s=0.4)
    world.critic.pace_s = 0.4
    gateway = world.gateway(**ENFORCE, stages=["beside"])

    begun = time.monotonic()
    reply = ask(gateway, before=HONEST)

    assert text_of(reply) == "Fine."
    assert time.monotonic() - begun < 0.75


def test_a_beginning_that_the_client_wrote_is_judged_with_the_answer(world: GuardWorld):
    """Half a sentence of theirs and half of the Actor's make one answer."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": BAD}]
    body = {"messages": messages}

    reply = world.gateway(**ENFORCE).post("/v1/chat/completions", json=body)

    assert world.critic.seen[0].response == f"{BAD}\nFine, and said."
    assert text_of(reply) == REFUSAL_EN


# Whoever goes away, and deadlines


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_the_critic_stops_when_the_client_goes_away(world: GuardWorld, mode: str):
    """Through both hops."""
    world.critic.fault = "slow"
    with pytest.raises(httpx.ReadTimeout):
        world.gateway(mode=mode).post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "?"}]}, timeout=0.5
        )

    wait_until(lambda: world.critic.cancelled == 1, 2)


def test_the_deadline_of_the_client_holds_for_the_critic_too(world: GuardWorld):
    """It is told what is left of it, and an answer that is not judged in time is no answer."""
    world.critic.fault = "slow"

    begun = time.monotonic()
    reply = ask(world.gateway(**ENFORCE, on_outage="pass"), headers={"x-vc-deadline-ms": "600"})

    assert error_of(reply, 504)["code"] == "deadline_exceeded"
    assert time.monotonic() - begun < 2
    assert 0 < int(world.critic.headers[0]["x-vc-deadline-ms"]) <= 600
    assert 0 < int(world.actor.headers[0]["x-vc-deadline-ms"]) <= 600


@pytest.mark.parametrize(("headers", "status"), [({"x-vc-deadline-ms": "5000"}, 504), ({}, 200)])
def test_a_critic_that_says_it_is_too_late_is_taken_at_its_word(
    world: GuardWorld, headers: dict[str, str], status: int
):
    """It drops what cannot be done in the client's time; without a deadline it is an outage like any other."""
    world.critic.fault = "late"

    reply = ask(world.gateway(**ENFORCE, on_outage="pass"), headers=headers)

    assert reply.status_code == status


def test_a_wrong_deadline_is_refused(world: GuardWorld):
    """As without a guard."""
    assert error_of(ask(world.gateway(**ENFORCE), headers={"x-vc-deadline-ms": "soon"}), 400)["param"]
    assert world.actor.bodies == []


# What is said of it


def test_verdicts_and_checks_are_counted(world: GuardWorld):
    """By their closed vocabularies."""
    world.actor.say([f"{BAD}."])
    gateway = world.gateway(**ENFORCE, threshold=0.9)
    ask(gateway)

    text = world.client(str(gateway.base_url), scope=Scope.ADMIN).get("/metrics").text

    assert 'vc_verdict_total{verdict="block"} 1.0' in text
    assert 'vc_guard_seconds_count{stage="after"} 1.0' in text
    assert "vc_upstream_up{replica=" in text
    assert 'role="critic"' in text


def test_what_is_asked_of_the_critic_is_nowhere_in_the_logs(world: GuardWorld, caplog: pytest.LogCaptureFixture):
    """Nor is what is not shown."""
    world.critic.fault = "down"
    world.actor.say(["canary-said."])

    ask(world.gateway(**ENFORCE, timeout_s=0.6), "canary-asked?")

    assert "The Critic does not answer the guard" in caplog.text
    assert "canary" not in caplog.text


def figures(critic: str = "critic-5", threshold: float = 0.5) -> GuardFigures:
    measure = Measure(value=0.1, low=0.05, high=0.2, n=100)
    rate = GuardRate(threshold=threshold, miss=measure, false_block=measure)
    stage = GuardStageFigures(stage="round-2", version="actor-2", unscored=0, rates=[rate])
    return GuardFigures(critic=critic, stages=[stage])


def test_the_guard_says_how_often_it_was_wrong(world: GuardWorld):
    """By the last report, for the Critic that is current at the threshold that holds; anything else is not measured."""
    gateway = world.gateway(**ENFORCE)
    AliasStore(world.redis).promote("critic", "critic-5")
    report = world.settings.home / "report" / "report.json"
    report.parent.mkdir(exist_ok=True)

    def shown(found: Any) -> dict[str, Any]:
        report.write_text(json.dumps({"guard": found}))
        return dict(gateway.get("/v1/guard").json())

    assert shown(None)["note"].startswith("Not measured: no report")
    assert "'critic-4'" in shown(figures("critic-4").model_dump())["note"]
    assert "this threshold" in shown(figures(threshold=0.8).model_dump())["note"]
    assert shown({"critic": 3})["miss"] is None
    told = shown(figures().model_dump())
    assert (told["miss"]["value"], told["miss"]["n"], told["stage"], told["note"]) == (0.1, 100, "round-2", "")
    assert (told["mode"], told["critic_version"], told["threshold"]) == ("enforce", "critic-5", 0.5)


def test_a_charter_that_cannot_be_read_keeps_the_gateway_from_starting(world: GuardWorld, tmp_path: Path):
    """Whoever relies on a guard must not go without one in silence."""
    with pytest.raises(ValueError, match="GATEWAY_CHARTER=missing cannot be used"):
        create_app(world.settings, GatewaySettings(charter="missing"))


def test_many_guarded_chats_at_once(world: GuardWorld):
    """None gets the verdict of another."""
    gateway = world.gateway(**ENFORCE)
    world.actor.say(["Fine."], pace_s=0.02)

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: ask(gateway, f"Question {number}?"), range(24)))

    assert {text_of(reply) for reply in replies} == {"Fine."}
    assert sorted(item.query for item in world.critic.seen) == sorted(f"Question {number}?" for number in range(24))


def test_a_real_critic_understands_the_guard(world: GuardWorld, tmp_path: Path):
    """Token, request and reply are those of the service; a long conversation is within what it takes."""
    from services.critic.app import create_app as create_critic  # brings torch, which the other tests do without
    from services.critic.settings import CriticSettings
    from tests.fakes import add_version as add_model

    shared = world.settings.model_copy(update={"home": tmp_path})
    add_model(ModelStore(shared.models), "critic", "c1")
    AliasStore(world.redis).promote("critic", "c1")
    history = [message for number in range(10) for message in (HONEST[0], HONEST[1])]
    with serve(create_critic(CriticSettings(poll_s=0.02), shared)) as url:
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200, 30)
        settings = world.settings.model_copy(update={"critic_urls": url})
        limits = GatewaySettings(charter=world.charter(mode="observe", stages=["before", "after"]))
        with serve(create_app(settings, limits)) as gateway:
            reply = ask(world.client(gateway), before=history)

    assert reply.headers["x-vc-critic-version"] == "c1"
    assert reply.headers["x-vc-verdict"] in ("pass", "observed-block")
