"""A service token opens one role for a minute, and nothing that was not signed here opens anything."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from fastapi import Depends
from fastapi.testclient import TestClient
from pydantic import SecretStr

from vcllm.contracts.problems import Forbidden, Problem, Unauthenticated
from vcllm.web.app import create_service
from vcllm.web.auth import scrapers_only, services_only
from vcllm.web.tokens import LEEWAY_S, LIFETIME_S, REUSED_S, Signer, Verifier, scrape_token

SECRET = SecretStr("an internal token of some length")
OTHER = SecretStr("an internal token of some lengtH")


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now


def token(audience: Any = "actor", issuer: Any = "trainer", secret: SecretStr = SECRET, late_s: float = 0) -> str:
    clock = Clock(time.time() - late_s)
    return Signer(secret, issuer, clock=clock).header(audience).removeprefix("Bearer ")


def refused(given: str, audience: Any = "actor") -> Problem:
    with pytest.raises(Problem) as raised:
        Verifier(SECRET, audience).check(given)
    return raised.value


def signing_key() -> bytes:
    return hmac.new(SECRET.get_secret_value().encode(), b"vcllm service token 1", hashlib.sha256).digest()


def forged(**changes: Any) -> str:
    """Rightly signed, with other claims; a claim of None is left out."""
    now = int(time.time())
    claims = {"iss": "trainer", "aud": "actor", "iat": now, "exp": now + LIFETIME_S, "jti": "1", **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, signing_key(), algorithm="HS256")


@pytest.mark.parametrize(
    ("issuer", "audience"),
    [("gateway", "actor"), ("gateway", "critic"), ("trainer", "actor"), ("trainer", "critic"), ("trainer", "attacker")],
)
def test_a_service_gets_in_where_it_has_work(issuer: str, audience: Any):
    """The gateway at Actor and Critic, the trainer everywhere."""
    Verifier(SECRET, audience).check(token(audience, issuer))


def test_the_gateway_does_not_get_at_the_attacker():
    """Not even with a token that is made for it: no public request can be turned into an attack."""
    problem = refused(token("attacker", "gateway"), "attacker")

    assert isinstance(problem, Forbidden)
    assert "trainer only" in problem.message


@pytest.mark.parametrize(("made_for", "sent_to"), [("actor", "attacker"), ("critic", "actor"), ("actor", "critic")])
def test_a_token_for_one_role_opens_no_other(made_for: str, sent_to: str):
    """Whoever gets hold of what the Actor is sent cannot ask the Attacker with it."""
    problem = refused(token(made_for), sent_to)

    assert isinstance(problem, Unauthenticated)
    assert problem.message == f"This service token is not for the {sent_to}."


@pytest.mark.parametrize("late_s", [LIFETIME_S + LEEWAY_S - 2, 1 - LEEWAY_S], ids=["old", "early"])
def test_clocks_may_be_ten_seconds_apart(late_s: float):
    """In both directions."""
    Verifier(SECRET, "actor").check(token(late_s=late_s))


@pytest.mark.parametrize(
    ("late_s", "why"), [(LIFETIME_S + LEEWAY_S + 2, "has expired"), (-LEEWAY_S - 2, "is from the future")]
)
def test_an_old_token_is_refused_and_the_clocks_are_named(late_s: float, why: str):
    """The sentence tells an operator where to look."""
    problem = refused(token(late_s=late_s))

    assert isinstance(problem, Unauthenticated)
    assert why in problem.message and "clocks" in problem.message


def test_another_secret_is_named_as_the_reason():
    """What happens when one service was not told the new internal token."""
    problem = refused(token(secret=OTHER))

    assert isinstance(problem, Unauthenticated)
    assert "VCLLM_INTERNAL_TOKEN" in problem.message


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def unsigned(algorithm: str) -> str:
    """The claims of a good token under another algorithm, without a signature."""
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{token().split('.')[1]}."


def by_another_algorithm(algorithm: str) -> str:
    now = int(time.time())
    claims = {"iss": "trainer", "aud": "actor", "iat": now, "exp": now + 60, "jti": "1"}
    return jwt.encode(claims, signing_key() * 2, algorithm=algorithm)


@pytest.mark.parametrize(
    "make",
    [
        lambda: unsigned("none"),
        lambda: unsigned("None"),
        lambda: unsigned("HS256"),
        lambda: unsigned("RS256"),
        lambda: by_another_algorithm("HS512"),
        lambda: by_another_algorithm("HS384"),
        lambda: SECRET.get_secret_value(),
        lambda: "",
        lambda: "..",
        lambda: "a.b.c",
        lambda: "\xff\xfe",
        lambda: "x" * 10_000,
        lambda: f"vck_00000000_{'a' * 43}",
        lambda: scrape_token(SECRET),
    ],
)
def test_what_is_no_token_is_401(make: Callable[[], str]):
    """Other algorithms, none at all, the bare secret, a user's key, the scrape token, rubbish."""
    assert isinstance(refused(make()), Unauthenticated)


def test_tokens_are_signed_with_a_key_that_is_derived():
    """What is forged below would get in but for its claims; the internal token itself signs nothing."""
    by_secret = jwt.encode(
        jwt.decode(token(), options={"verify_signature": False}), SECRET.get_secret_value(), algorithm="HS256"
    )

    Verifier(SECRET, "actor").check(forged())
    assert "VCLLM_INTERNAL_TOKEN" in refused(by_secret).message


@pytest.mark.parametrize("claim", ["iss", "aud", "iat", "exp", "jti"])
def test_every_claim_is_needed(claim: str):
    """A token without an end, or without a role, would be good for too much."""
    assert isinstance(refused(forged(**{claim: None})), Unauthenticated)


@pytest.mark.parametrize(
    "changes",
    [{"aud": ["actor", "attacker"]}, {"aud": "*"}, {"exp": int(time.time()) + 10**6}, {"exp": "soon"}, {"iat": []}],
)
def test_a_token_that_claims_too_much_is_401(changes: dict[str, Any]):
    """Several roles at once, or a life of days, even rightly signed."""
    assert isinstance(refused(forged(**changes)), Unauthenticated)


def test_any_changed_character_is_found():
    """Of header, claims and signature, wherever it is; seeded."""
    chance, good = random.Random(0), token()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for _ in range(300):
        # The last character of the signature has two bits that no byte is made of.
        at = chance.randrange(len(good) - 1)
        other = chance.choice([one for one in alphabet if one != good[at]])
        assert isinstance(refused(good[:at] + other + good[at + 1 :]), Unauthenticated)


def test_a_token_is_made_again_every_twenty_seconds():
    """The same header meanwhile; one per role; a clock that was set back makes a new one, too."""
    clock = Clock()
    signer = Signer(SECRET, "gateway", clock=clock)
    first = signer.header("actor")
    clock.now += REUSED_S - 1
    assert signer.header("actor") == first
    assert signer.header("critic") != first
    clock.now += 2
    second = signer.header("actor")
    clock.now -= 3600
    third = signer.header("actor")

    assert len({first, second, third}) == 3


def test_neither_token_nor_scrape_token_tells_the_secret():
    """Nor the key that tokens are signed with."""
    seen = token() + scrape_token(SECRET) + json.dumps(jwt.decode(token(), options={"verify_signature": False}))

    assert SECRET.get_secret_value() not in seen
    assert signing_key().hex() not in seen


def test_an_empty_secret_signs_and_opens_nothing():
    """Everybody would know it."""
    empty = SecretStr("")
    for make in (
        lambda: Signer(empty, "trainer"),
        lambda: Verifier(empty, "actor"),
        lambda: services_only(empty, "actor"),
        lambda: scrapers_only(empty),
    ):
        with pytest.raises(ValueError, match="VCLLM_INTERNAL_TOKEN"):
            make()


def status(path: str, header: str | None) -> int:
    app = create_service("critic", lifespan=None)
    app.get("/work", dependencies=[Depends(services_only(SECRET, "critic"))])(lambda: None)
    app.get("/metrics", dependencies=[Depends(scrapers_only(SECRET))])(lambda: None)
    with TestClient(app) as client:
        return client.get(path, headers={} if header is None else {"authorization": header}).status_code


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: f"Bearer {token('critic')}", 200),
        (lambda: f"bearer {token('critic')}", 200),
        (lambda: None, 401),
        (lambda: "Bearer ", 401),
        (lambda: f"Basic {token('critic')}", 401),
        (lambda: token("critic"), 401),
        (lambda: f"Bearer {SECRET.get_secret_value()}", 401),
        (lambda: f"Bearer {scrape_token(SECRET)}", 401),
    ],
)
def test_only_a_bearer_of_a_token_gets_work_done(make: Callable[[], str | None], expected: int):
    """The internal token itself opens no door to work, so that nobody has a reason to send it."""
    assert status("/work", make()) == expected


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: f"Bearer {scrape_token(SECRET)}", 200),
        (lambda: f"Bearer {SECRET.get_secret_value()}", 401),
        (lambda: f"Bearer {scrape_token(OTHER)}", 401),
        (lambda: f"Bearer {token('critic')}", 401),
        (lambda: None, 401),
    ],
)
def test_metrics_are_for_scrapers(make: Callable[[], str | None], expected: int):
    """By a token that does not expire, which scrapers can be told once."""
    assert status("/metrics", make()) == expected
