"""`vcllm review`: what it shows of an answer, what it asks, and what it tells the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from tests.unit.test_cli import FakeGateway, gateway, run
from tests.unit.test_stores_reviews import item
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.keys import Scope
from vcllm.contracts.reviews import ReviewItem
from vcllm.launch.credentials import DEMO_KEY, write_secret
from vcllm.launch.local_key import local_key
from vcllm.stores.api_keys import KeyStore

__all__ = ["gateway", "run"]
"""Fixtures of the command line's tests."""

FIRST = item(
    1,
    history=[ChatMessage(role="user", content="[red]hello"), ChatMessage(role="assistant", content="good day")],
    critique=Critique(
        outcome=Outcome.CONSISTENT,
        score=0.55,
        probabilities={Outcome.VIOLATING: 0.4, Outcome.CONSISTENT: 0.55},
        criteria={"stance": 0.5},
        reason="It keeps to the charter.",
    ),
    rejected="an unfair answer",
    rejected_critique=Critique(outcome=Outcome.VIOLATING, score=0.05),
)
SECOND = item(2, language=Language.ZH)


def page(*items: ReviewItem, waiting: int = 2, after: int | None = None) -> dict[str, Any]:
    return {"data": [one.model_dump(mode="json") for one in items], "waiting": waiting, "after": after}


def decided(one: ReviewItem, outcome: str, pair: str | None = None, note: str = "") -> dict[str, Any]:
    decision = {"outcome": outcome, "note": note}
    return {"item": one.model_dump(mode="json"), "decision": decision, "by": "key-1", "decided": 1.0, "pair": pair}


@pytest.fixture
def call(run: Any, gateway: FakeGateway) -> Any:
    return lambda *words, **options: run("review", *words, "--url", gateway.url, "--key", "k", **options)


def told(gateway: FakeGateway, one: ReviewItem) -> list[Any]:
    """The decisions on an item that the gateway was told."""
    return [body for route, _, body in gateway.asked if route == f"POST /v1/reviews/{one.id}"]


def test_the_list_shows_what_waits_and_where_it_goes_on(call: Any, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/reviews"] = [page(FIRST, SECOND, waiting=9, after=2)]

    result = call("list")

    assert result.exit_code == 0
    for said in (FIRST.id[:12], "pol.rights/direct/zh", "0.55", "query 2", "9 wait", "vcllm review list --after 2"):
        assert said in result.output


def test_an_empty_list_says_so(call: Any, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/reviews"] = [page(waiting=0)]

    assert call("list").output == "No answer waits for a person.\n"
    assert call("next", "--lang", "zh").output == "没有待审的回答。\n"


def test_next_shows_all_that_a_person_needs_to_decide(call: Any, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/reviews"] = [page(FIRST, after=1)]

    result = call("next", "--lang", "en", input="q\n")

    shown = ["[red]hello", "good day", "query 1", "a fair answer", "consistent, score 0.55", "It keeps to the charter."]
    shown += ["consistent 0.55, violating 0.40", "stance 0.50", "an unfair answer", "violating, score 0.05"]
    shown += ["The valley has no say.", "2 waiting", "0 decided, 0 skipped."]
    for said in shown:
        assert said in result.output


def test_next_goes_on_until_nothing_is_left(call: Any, gateway: FakeGateway) -> None:
    """One is approved with a note, one skipped, one misspelt first."""
    third = item(3)
    gateway.answers["GET /v1/reviews"] = [page(FIRST, after=1), page(SECOND, after=2), page(third, after=3), page()]
    gateway.answers[f"POST /v1/reviews/{FIRST.id}"] = [decided(FIRST, "consistent", "b" * 64)]
    gateway.answers[f"POST /v1/reviews/{third.id}"] = [decided(third, "broken")]

    result = call("next", "--lang", "en", input="C it is right\ns\nbroken\nb\n")

    assert told(gateway, FIRST) == [{"outcome": "consistent", "note": "it is right"}]
    assert told(gateway, third) == [{"outcome": "broken", "note": ""}]
    assert f"Approved for training, as pair {'b' * 12}." in result.output
    assert "a space goes between" in result.output
    assert "Kept as a label: broken." in result.output
    assert "2 decided, 1 skipped." in result.output


def test_next_speaks_the_language_of_the_terminal(
    call: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.answers["GET /v1/reviews"] = [page(FIRST, after=1), page()]
    gateway.answers[f"POST /v1/reviews/{FIRST.id}"] = [decided(FIRST, "refusal")]
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")

    result = call("next", input="r\n")

    assert "符合宪章，分数 0.55" in result.output
    assert "已记为标注：只是拒答。" in result.output
    assert "已审 1 条，跳过 0 条。" in result.output
    assert "waiting" not in result.output


def test_whoever_was_slower_goes_on_with_the_next(call: Any, gateway: FakeGateway) -> None:
    """A conflict is told and ends nothing; any other failure does."""
    refused = {"error": {"message": "'1' was decided before: violating, by key k2."}}
    gateway.answers["GET /v1/reviews"] = [page(FIRST, after=1), page(SECOND, after=2), page()]
    gateway.answers[f"POST /v1/reviews/{FIRST.id}"] = [(409, refused)]
    gateway.answers[f"POST /v1/reviews/{SECOND.id}"] = [(403, {"error": {"message": "This key may not."}})]

    result = call("next", "--lang", "en", input="c\nv\n")

    assert "was decided before: violating, by key k2." in result.output
    assert told(gateway, SECOND) == [{"outcome": "violating", "note": ""}]
    assert result.exit_code == 1
    assert "error: This key may not." in result.output


def test_the_end_of_the_input_is_no_decision(call: Any, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/reviews"] = [page(FIRST, after=1)]

    result = call("next", "--lang", "en", input="")

    assert result.exit_code == 0
    assert told(gateway, FIRST) == []


def test_a_decision_in_one_line(call: Any, gateway: FakeGateway) -> None:
    name = FIRST.id[:12]
    gateway.answers[f"POST /v1/reviews/{name}"] = [decided(FIRST, "consistent", "b" * 64)]

    result = call("decide", name, "consistent", "--note", "fine")

    assert gateway.asked[-1][2] == {"outcome": "consistent", "note": "fine"}
    assert result.output == f"Approved for training, as pair {'b' * 12}.\n"
    assert call("decide", name, "unscored").exit_code == 2


def test_a_decided_review_shows_who_said_what(call: Any, gateway: FakeGateway) -> None:
    gateway.answers[f"GET /v1/reviews/{FIRST.id}"] = [decided(FIRST, "violating", note="agrees in the end")]

    result = call("show", FIRST.id, "--lang", "en")

    assert "a fair answer" in result.output
    assert "Decided: violating, by key key-1. agrees in the end" in result.output


def test_a_models_text_cannot_command_the_terminal(call: Any, gateway: FakeGateway) -> None:
    """Codes that move the cursor or turn the direction are shown as what they are: not letters."""
    sly = item(1, answer="fair\x1b[2Jtext\u202e", query="一、\u3000问\nsecond line")
    gateway.answers["GET /v1/reviews"] = [page(sly, after=1)]

    result = call("next", input="q\n")

    assert "\x1b[2J" not in result.output and "\u202e" not in result.output
    assert "fair\ufffd[2Jtext\ufffd" in result.output
    assert "一、\u3000问" in result.output


def test_a_local_key_from_before_there_were_reviews_is_replaced(tmp_path: Path, client: Redis) -> None:
    """Whoever sits at the machine may review, also after an update; from then on the key stays."""
    pepper = SecretStr("pepper")
    old, _ = KeyStore(client, pepper).create("this machine", [Scope.CHAT, Scope.JOBS_READ, Scope.JOBS_WRITE])
    write_secret(tmp_path, DEMO_KEY, old)

    new = local_key(tmp_path, client, pepper)

    assert new != old
    assert Scope.REVIEW in KeyStore(client, pepper).find(new).scopes
    assert local_key(tmp_path, client, pepper) == new
