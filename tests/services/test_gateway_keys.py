"""Keys through the gateway: limits and budgets that hold, rotation with an overlap, and what was used."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fake_actor import FakeActor
from tests.gateway_world import Gateway, chat_body, error_of, gateway_on
from tests.servers import serve_redis, wait_until
from vcllm.contracts.keys import Scope
from vcllm.stores.connect import KEYS

CHAT = "/v1/chat/completions"


def make(gateway: Gateway, scopes: tuple[str, ...] = ("chat",), **fields: Any) -> dict[str, Any]:
    reply = gateway[Scope.ADMIN].post("/v1/keys", json={"name": "team", "scopes": scopes, **fields})
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def ask(gateway: Gateway, key: dict[str, Any], path: str = CHAT, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key['key']}"}
    if path == CHAT:
        return gateway[None].post(path, json=chat_body(**fields), headers=headers)
    return gateway[None].get(path, headers=headers)


def sdk(gateway: Gateway, key: dict[str, Any]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key["key"], max_retries=2)


def test_requests_beyond_the_limit_are_told_when_to_come_back(gateway: Gateway):
    """In OpenAI's headers, on good replies and on refusals, with a time that is true."""
    key = make(gateway, limits={"requests_per_minute": 2})
    first, second, third = (ask(gateway, key) for _ in range(3))

    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in (first, second)] == ["1", "0"]
    assert error_of(third, 429)["code"] == "rate_limit_exceeded"
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert 25 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["x-ratelimit-reset-requests"].endswith("s")
    assert len(gateway.actor.seen) == 2


def test_other_requests_count_as_requests(gateway: Gateway):
    """They carry the headers, too; a refusal for the scope costs nothing."""
    key = make(gateway, scopes=("jobs:read",), limits={"requests_per_minute": 1})
    error_of(ask(gateway, key), 403)

    assert ask(gateway, key, "/v1/jobs").headers["x-ratelimit-remaining-requests"] == "0"
    error_of(ask(gateway, key, "/v1/jobs"), 429)


def test_a_used_up_budget_is_not_retried_by_the_sdk(gateway: Gateway):
    """One request, one error of the kind that the SDK knows."""
    key = make(gateway, budget={"tokens": 5, "period": "day"})
    assert ask(gateway, key).status_code == 200

    with sdk(gateway, key) as client, pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**chat_body(model="vc-llm"))

    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(gateway.actor.seen) == 1


def test_chats_at_once_are_limited(gateway: Gateway):
    """The one too many is refused at once; whoever goes away makes room."""
    key = make(gateway, limits={"concurrent_chats": 1})
    with ThreadPoolExecutor(1) as pool:
        headers = {"authorization": f"Bearer {key['key']}"}
        slow = pool.submit(gateway[None].post, CHAT, json=chat_body("slow"), headers=headers, timeout=0.8)
        wait_until(lambda: gateway.actor.begun == 1)
        assert "1 chats at once" in error_of(ask(gateway, key), 429)["message"]
        assert isinstance(slow.exception(), httpx.ReadTimeout)

    wait_until(lambda: ask(gateway, key).status_code == 200, timeout_s=3)


def test_what_was_used_is_told_by_the_day(gateway: Gateway):
    """Requests, tokens as the Actor counted them, and what is used of the budget, within a second or two."""
    key = make(gateway, budget={"tokens": 1000, "period": "month"})
    for _ in range(2):
        ask(gateway, key)

    def usage() -> dict[str, Any]:
        return dict(gateway[Scope.ADMIN].get(f"/v1/keys/{key['id']}/usage", params={"days": 2}).json())

    wait_until(lambda: usage()["used"] == 10, timeout_s=4)
    (today,) = usage()["data"]
    assert (today["requests"], today["tokens"]) == (2, 10)
    assert usage()["budget"] == {"tokens": 1000, "period": "month"}
    error_of(gateway[Scope.ADMIN].get(f"/v1/keys/{key['id']}/usage?days=0"), 400)
    error_of(gateway[Scope.ADMIN].get("/v1/keys/unknown/usage"), 404)


def test_a_list_tells_all_but_the_key(gateway: Gateway):
    """Limits, budget and last use; neither the key nor its hash, in no reply but the one that made it."""
    key = make(gateway, limits={"tokens_per_minute": 500}, budget={"tokens": 9})
    ask(gateway, key)

    def shown() -> httpx.Response:
        return gateway[Scope.ADMIN].get(f"/v1/keys/{key['id']}")

    wait_until(lambda: shown().json()["last_used"] is not None, timeout_s=4)
    assert abs(shown().json()["last_used"] - time.time()) < 5
    assert shown().json()["limits"]["tokens_per_minute"] == 500
    assert shown().json()["budget"] == {"tokens": 9, "period": "month"}
    listed = gateway[Scope.ADMIN].get("/v1/keys").text
    assert key["id"] in listed
    for secret in (key["key"], key["key"].rsplit("_", 1)[1], *gateway.redis.hgetall(KEYS)):
        assert secret not in listed + shown().text
    error_of(gateway[Scope.ADMIN].get("/v1/keys/unknown"), 404)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 1e300}, "ttl_s"),
        ({"scopes": []}, "scopes"),
        ({"name": ""}, "name"),
        ({"limits": {"requests_per_minute": -1}}, "limits.requests_per_minute"),
        ({"limits": {"requests_per_second": 1}}, "limits.requests_per_second"),
        ({"budget": {"tokens": 0}}, "budget.tokens"),
        ({"budget": {"tokens": 5, "period": "year"}}, "budget.period"),
    ],
)
def test_a_wrong_key_is_not_made(gateway: Gateway, fields: dict[str, Any], param: str):
    """The field is named, and nothing is stored."""
    reply = gateway[Scope.ADMIN].post("/v1/keys", json={"name": "team", "scopes": ["chat"], **fields})

    assert error_of(reply, 400)["param"] == param
    assert gateway.redis.hlen(KEYS) == 1, "the administrator's"


def test_a_key_is_changed_while_it_is_used(gateway: Gateway):
    """At once, although it was in the cache; what is used stays used, and what is not named stays."""
    key = make(gateway, limits={"requests_per_minute": 1}, budget={"tokens": 1000})
    ask(gateway, key)
    error_of(ask(gateway, key), 429)
    admin, path = gateway[Scope.ADMIN], f"/v1/keys/{key['id']}"

    raised = admin.patch(path, json={"limits": {"requests_per_minute": 0}})
    assert raised.json()["limits"]["requests_per_minute"] == 0
    assert ask(gateway, key).status_code == 200
    shrunk = admin.patch(path, json={"budget": {"tokens": 20, "period": "month"}})
    assert shrunk.json()["limits"]["requests_per_minute"] == 0

    wait_until(lambda: ask(gateway, key).status_code == 429, timeout_s=4)
    assert error_of(ask(gateway, key), 429)["code"] == "insufficient_quota"
    wait_until(lambda: admin.get(f"{path}/usage").json()["used"] == 20, timeout_s=4)
    assert admin.patch(path, json={"budget": None}).json()["budget"] is None
    assert ask(gateway, key).status_code == 200


def test_a_change_says_what_and_of_what(gateway: Gateway):
    """Nothing, something unknown, and a key that is not there are refused with a reason."""
    key, admin = make(gateway), gateway[Scope.ADMIN]
    path = f"/v1/keys/{key['id']}"

    assert "Say what" in error_of(admin.patch(path, json={}), 400)["message"]
    assert "Say what" in error_of(admin.patch(path, json={"limits": {}}), 400)["message"]
    assert error_of(admin.patch(path, json={"scopes": ["admin"]}), 400)["param"] == "scopes"
    error_of(admin.patch("/v1/keys/unknown", json={"budget": None}), 404)
    assert admin.get(path).json()["limits"] == key["limits"]


def test_a_rotated_key_lives_out_its_overlap(gateway: Gateway):
    """Both open the same meanwhile; then the old one has expired and the new one is what is left."""
    old = make(gateway, ttl_s=3600)
    assert ask(gateway, old, "/v1/models").status_code == 200

    reply = gateway[Scope.ADMIN].post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 0.6})
    new = reply.json()

    assert reply.status_code == 201
    assert [ask(gateway, key, "/v1/models").status_code for key in (old, new)] == [200, 200]
    assert new["expires"] - time.time() == pytest.approx(3600, abs=30), "as long as the old one was made for"
    assert gateway[Scope.ADMIN].get(f"/v1/keys/{old['id']}").json()["replaced_by"] == new["id"]
    wait_until(lambda: ask(gateway, old, "/v1/models").status_code == 401, timeout_s=2)
    assert ask(gateway, new, "/v1/models").status_code == 200


def test_a_rotation_without_overlap_ends_the_old_key_at_once(gateway: Gateway):
    """Although it was in the cache."""
    old = make(gateway)
    assert ask(gateway, old, "/v1/models").status_code == 200

    gateway[Scope.ADMIN].post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 0})

    error_of(ask(gateway, old, "/v1/models"), 401)


def test_a_rotation_doubles_no_limit_and_no_budget(gateway: Gateway):
    """Both keys count against what the old one had; the day's use is told for either."""
    old = make(gateway, limits={"requests_per_minute": 2}, budget={"tokens": 1000})
    ask(gateway, old)
    new = gateway[Scope.ADMIN].post(f"/v1/keys/{old['id']}/rotate").json()

    assert ask(gateway, new).headers["x-ratelimit-remaining-requests"] == "0"
    error_of(ask(gateway, old), 429)

    def used(key: dict[str, Any]) -> int:
        return int(gateway[Scope.ADMIN].get(f"/v1/keys/{key['id']}/usage").json()["used"])

    wait_until(lambda: used(old) == used(new) == 10, timeout_s=4)


def test_a_key_is_rotated_once(gateway: Gateway):
    """Eight at once make one successor; the others are told which one it is."""
    old = make(gateway)
    admin = gateway[Scope.ADMIN]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: admin.post(f"/v1/keys/{old['id']}/rotate"), range(8)))

    made = [reply.json()["id"] for reply in replies if reply.status_code == 201]
    assert len(made) == 1
    assert all(made[0] in error_of(reply, 409)["message"] for reply in replies if reply.status_code != 201)
    error_of(admin.post("/v1/keys/unknown/rotate"), 404)


def test_a_slow_redis_leaves_nothing_but_chat(tmp_path: Path):
    """Chat goes on under its limit; the rest is refused at once instead of waiting, until Redis answers again."""
    with serve_redis(tmp_path) as redis, gateway_on(redis.url, tmp_path, FakeActor()) as running:
        chatter = make(running, scopes=("chat", "jobs:read"), limits={"requests_per_minute": 600})
        assert ask(running, chatter).status_code == ask(running, chatter, "/v1/jobs").status_code == 200
        os.kill(redis.process.pid, signal.SIGSTOP)
        try:
            time.sleep(2.5)  # it is looked for twice a second, for 1.5 s
            begun = time.monotonic()
            refused = ask(running, chatter, "/v1/jobs")
            took_s = time.monotonic() - begun
            chatted = ask(running, chatter)
        finally:
            os.kill(redis.process.pid, signal.SIGCONT)

        assert "only chat is served" in error_of(refused, 503)["message"]
        assert took_s < 1
        assert chatted.status_code == 200
        assert int(chatted.headers["x-ratelimit-remaining-requests"]) >= 595
        wait_until(lambda: ask(running, chatter, "/v1/jobs").status_code == 200, timeout_s=6)


@pytest.fixture
def two(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gateway]]:
    """Two gateways on one Redis, as two processes would be."""
    homes = [tmp_path_factory.mktemp("home") for _ in range(2)]
    with (
        gateway_on(redis_url, homes[0], FakeActor()) as first,
        gateway_on(redis_url, homes[1], FakeActor()) as second,
    ):
        yield [first, second]


def test_two_gateways_hold_one_limit(two: list[Gateway]):
    """As fast as they can for three seconds: together no more than a tenth and two requests beyond the limit."""
    key = make(two[0], limits={"requests_per_minute": 60})
    for each in two:
        ask(each, key, "/v1/models")
    time.sleep(1.2)
    begun = time.monotonic()
    admitted = 2
    while time.monotonic() - begun < 3:
        admitted += sum(ask(each, key, "/v1/models").status_code == 200 for each in two)
        time.sleep(0.01)

    assert 55 <= admitted <= 60 + 4.5 + 6 + 2
