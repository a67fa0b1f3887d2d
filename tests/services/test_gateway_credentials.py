"""Credentials that are wrong in every way: one answer, no crash, nothing of them repeated or logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.settings import GatewaySettings
from tests.fake_actor import FakeActor
from tests.gateway_world import PEPPER, Gateway, error_of, gateway_on
from tests.servers import wait_until
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.stores.connect import KEYS

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
"""The same examples in every run."""

CANARY = b"canary-5d1f0c77e2"
KEY_LETTERS = string.ascii_letters + string.digits + "_-"


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """What is logged meanwhile, down to DEBUG."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage() + str(record.exc_info or ""))

    root, handler = logging.getLogger(), Collect()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def raw(url: str, *headers: bytes) -> tuple[int, bytes]:
    """Status and the whole reply to a GET with exactly these header lines, which no client would send."""
    where = urlsplit(url)
    lines = [b"GET /v1/models HTTP/1.1", b"host: gateway", b"connection: close", *headers, b"", b""]
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(b"\r\n".join(lines))
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(reply.split(b" ", 2)[1]), reply


def refuses(url: str, *headers: bytes, secret: bytes) -> None:
    """401, or 400 where it is not HTTP; what was sent is found neither in the reply nor in the log."""
    with everything_logged() as said:
        status, reply = raw(url, *headers)

    assert status in (400, 401), reply
    if len(secret) >= len(CANARY):  # a shorter one may stand there by chance
        assert secret not in reply
        assert secret.decode("latin-1") not in "\n".join(said)


schemes = st.sampled_from([b"Bearer ", b"bearer\t", b"Basic ", b"Token ", b"Bearer Bearer ", b"ApiKey "])
anything = st.binary(min_size=1, max_size=200).filter(lambda value: not set(value) & {0x0A, 0x0D})
words = st.text(KEY_LETTERS, min_size=1, max_size=60).map(str.encode)


@quick
@given(anything)
def test_any_header_is_refused(running: Gateway, value: bytes):
    """Whatever bytes stand in it, NUL and half a character among them."""
    refuses(running.url, b"authorization: " + value + CANARY, secret=CANARY)


@quick
@given(schemes, words | anything)
def test_any_credential_is_refused(running: Gateway, scheme: bytes, value: bytes):
    """Under the right scheme and under wrong ones."""
    refuses(running.url, b"authorization: " + scheme + value + CANARY, secret=CANARY)


@quick
@given(st.data())
def test_a_key_with_a_fault_is_no_key(running: Gateway, data: st.DataObject):
    """One letter changed, dropped, doubled or put in anywhere, or cut anywhere: each is an unknown key."""
    key, _ = running.key(Scope.CHAT)
    assert raw(running.url, b"authorization: Bearer " + key.encode())[0] == 200, "cached from now on"
    place = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from(KEY_LETTERS))
    faults = [key[:place], key[:place] + key[place + 1 :], key[:place] + letter + key[place:], key.swapcase()]
    faults += [key[:place] + letter + key[place + 1 :], key + key, key[:place] + " " + key[place:]]
    fault = data.draw(st.sampled_from([fault for fault in faults if fault.strip() != key]))

    refuses(running.url, b"authorization: Bearer " + fault.encode(), secret=fault.encode().strip())


@pytest.mark.parametrize("size", [3_000, 60_000, 500_000])
def test_a_very_long_credential_is_refused(gateway: Gateway, size: int):
    """Before it is looked up; beyond what the server reads of a header the connection may simply end."""
    try:
        status, _ = raw(gateway.url, b"authorization: Bearer vck_00000000_" + b"a" * size)
    except ConnectionError:
        assert size > 100_000
    else:
        assert status in (400, 401, 431)


def test_two_headers_are_refused(gateway: Gateway):
    """Also when both bring the same good key: whoever stands in between might have looked at the other one."""
    key, _ = gateway.key(Scope.CHAT)
    good = b"authorization: Bearer " + key.encode()

    for second in (good, b"Authorization: Bearer x", b"authorization: "):
        refuses(gateway.url, good, second, secret=key.encode())
        refuses(gateway.url, second, good, secret=key.encode())


def test_the_scheme_has_no_case(gateway: Gateway):
    """As HTTP says; the key has."""
    key, _ = gateway.key(Scope.CHAT)

    for scheme in ("Bearer", "bearer", "BEARER"):
        assert gateway[None].get("/v1/models", headers={"authorization": f"{scheme} {key}"}).status_code == 200
    error_of(gateway[None].get("/v1/models", headers={"authorization": f"Bearer {key.upper()}"}), 401)


def test_a_key_elsewhere_is_not_looked_at(gateway: Gateway):
    """Not in the address, a cookie or another header: those end up in logs."""
    key, _ = gateway.key(Scope.CHAT)

    error_of(gateway[None].get(f"/v1/models?api_key={key}&key={key}"), 401)
    error_of(gateway[None].get("/v1/models", headers={"x-api-key": key, "cookie": f"authorization={key}"}), 401)


@pytest.mark.parametrize("shared", [17, 20, 30, 59])
def test_keys_with_the_same_beginning_are_never_confused(gateway: Gateway, shared: int):
    """In the store and in the cache, in either order, and again from the cache: each has its own rights."""
    beginning = f"vck_{'0' * 12}_" + "a" * (shared - 17)
    chat, admin = (beginning + letter * (60 - shared) for letter in "bc")
    for key, scope in ((chat, Scope.CHAT), (admin, Scope.ADMIN)):
        digest = hmac.new(PEPPER.get_secret_value().encode(), key.encode(), hashlib.sha256).hexdigest()
        record = KeyRecord(id=key[-1], name="test", scopes=[scope], created=0, hint=key[:12])
        gateway.redis.hset(KEYS, digest, record.model_dump_json())

    for key, status in ((chat, 403), (admin, 200), (chat, 403), (admin, 200)):
        assert gateway[None].get("/v1/keys", headers={"authorization": f"Bearer {key}"}).status_code == status


def test_the_hash_of_a_key_is_no_key(gateway: Gateway):
    """Whoever has read the database cannot get in with what stands there."""
    key, key_id = gateway.key(Scope.ADMIN)
    (stored,) = gateway.redis.hgetall(KEYS)

    for tried in (stored, f"vck_{key_id}_{stored}", hashlib.sha256(key.encode()).hexdigest(), key_id, key[:12]):
        error_of(gateway[None].get("/v1/models", headers={"authorization": f"Bearer {tried}"}), 401)


def test_an_expired_key_is_told_so(gateway: Gateway):
    """From its second on, also where the gateway had it in its cache."""
    key, _ = gateway.key(Scope.CHAT, ttl_s=0.4)
    headers = {"authorization": f"Bearer {key}"}
    assert gateway[None].get("/v1/models", headers=headers).status_code == 200

    wait_until(lambda: gateway[None].get("/v1/models", headers=headers).status_code == 401, timeout_s=2)

    assert "expired" in error_of(gateway[None].get("/v1/models", headers=headers), 401)["message"]


def test_a_revoked_key_ends_everywhere(gateway: Gateway, tmp_path: Path):
    """At once on the gateway that revoked it, on another within the time keys are trusted there."""
    limits = GatewaySettings(key_ttl_s=0.5)
    with gateway_on(gateway.settings.redis_url, tmp_path, FakeActor(), limits=limits) as other:
        key, key_id = gateway.key(Scope.CHAT)
        headers = {"authorization": f"Bearer {key}"}
        for url in (gateway.url, other.url):
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200

        assert gateway[Scope.ADMIN].delete(f"/v1/keys/{key_id}").status_code == 200

        assert httpx.get(f"{gateway.url}/v1/models", headers=headers).status_code == 401
        wait_until(lambda: httpx.get(f"{other.url}/v1/models", headers=headers).status_code == 401, timeout_s=2)
