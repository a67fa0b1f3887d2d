"""`vcllm keys` on a real Redis: made with limits, listed without secrets, rotated, and what was used."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from tests.unit.test_cli import run
from vcllm.commands.amounts import budget_of, lifetime_of, overlap_of, seconds_of
from vcllm.commands.errors import CommandError
from vcllm.contracts.guard import GuardMode
from vcllm.contracts.keys import Budget, KeyLimits, KeyRecord, Period, Scope
from vcllm.contracts.problems import Unauthenticated
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.connect import KEYS, KEYS_USED
from vcllm.stores.limits import LimitStore, Spent

__all__ = ["run"]
"""Fixture of the command line's tests."""


@pytest.fixture
def keys(run: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `vcllm keys` next to a running Redis."""
    monkeypatch.setenv("VCLLM_REDIS_URL", redis_url)
    monkeypatch.setenv("VCLLM_PEPPER", "pepper")
    return lambda *words: run("keys", *words)


@pytest.fixture
def store(client: Redis) -> KeyStore:
    return KeyStore(client, SecretStr("pepper"))


def made(result: Any) -> str:
    """The key, which stands alone on its line of standard output."""
    assert result.exit_code == 0, result.output
    return str(result.stdout.strip())


def test_a_key_is_made_with_all_it_may(keys: Any, store: KeyStore) -> None:
    """Scopes, lifetime, limits and budget; the key alone goes to standard output."""
    words = ["--scope", "chat", "--scope", "jobs:read", "--expires", "30d", "--requests-per-minute", "60"]
    words += ["--tokens-per-minute", "0", "--concurrent-chats", "4", "--budget", "5,000,000/month"]

    record = store.find(made(keys("create", "team", *words)))

    assert record.scopes == [Scope.CHAT, Scope.JOBS_READ]
    assert record.expires == pytest.approx(time.time() + 30 * 86400, abs=30)
    assert record.limits == KeyLimits(requests_per_minute=60, tokens_per_minute=0, concurrent_chats=4)
    assert record.budget == Budget(tokens=5_000_000, period=Period.MONTH)


def test_a_key_may_chat_unless_more_is_said(keys: Any, store: KeyStore) -> None:
    """For ever, under the gateway's own limits."""
    record = store.find(made(keys("create", "team")))

    assert (record.scopes, record.expires, record.limits, record.budget) == ([Scope.CHAT], None, KeyLimits(), None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["create", "team", "--expires", "soon"], "is not a length of time"),
        (["create", "team", "--expires", "2001-01-01"], "has begun already"),
        (["create", "team", "--expires", "2027-02-31"], "is not a day of the calendar"),
        (["create", "team", "--budget", "many"], "is not a budget"),
        (["create", ""], "1 to 100 characters"),
        (["rotate", "unknown"], "There is no key 'unknown'"),
        (["rotate", "unknown", "--overlap", "-1h"], "is not a length of time"),
        (["change", "unknown", "--budget", "9/day"], "There is no key 'unknown'"),
        (["change", "unknown"], "Say what is to be changed"),
        (["change", "unknown", "--guard", "strict"], "is not a mode of the guard"),
        (["change", "unknown", "--tokens-per-minute", "-1"], "is not a limit"),
        (["usage", "unknown"], "There is no key 'unknown'"),
        (["revoke", "unknown"], "There is no key 'unknown'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(keys: Any, store: KeyStore, words: list[str], says: str) -> None:
    """And nothing is made."""
    result = keys(*words)

    assert result.exit_code == 1
    assert says in result.output
    assert store.all() == []


def test_a_list_tells_all_but_the_key(keys: Any, store: KeyStore, client: Redis) -> None:
    """Limits, budget, last use and what became of it; neither the key nor its hash."""
    limits, budget = KeyLimits(tokens_per_minute=500), budget_of("9/day")
    key, record = store.create("[/team]", [Scope.CHAT], 3600, limits=limits, budget=budget)
    store.create("old", [Scope.ADMIN], ttl_s=1e-3)
    store.rotate(record.id, overlap_s=60)
    LimitStore(client).exchange("gateway", 1, [], {record.id: 1_000_000_000.0})

    output = keys("list").output

    for shown in (record.id, "[/team]", "500 tokens/min", "9/day", "rotated: ", "expired", "default", "2001-09-09"):
        assert shown in output
    for secret in (key, key.rsplit("_", 1)[1], *client.hgetall(KEYS)):
        assert secret not in output


def test_a_revoked_key_that_is_told_of_late_does_not_come_back(store: KeyStore, client: Redis) -> None:
    """A gateway tells of uses once a second; the one in the second of the revocation stayed for ever."""
    _, revoked = store.create("left", [Scope.CHAT])
    _, kept = store.create("stays", [Scope.CHAT])
    store.revoke(revoked.id)
    LimitStore(client).exchange("gateway", 1, [], {revoked.id: 5.0, kept.id: 6.0})

    assert store.last_used() == {kept.id: 6.0}
    assert client.hkeys(KEYS_USED) == [kept.id]


def test_a_key_is_changed_and_its_relatives_with_it(keys: Any, store: KeyStore) -> None:
    """What is not named stays; limits and budget hold for the keys it was rotated to, the guard for itself alone."""
    _, record = store.create("team", [Scope.CHAT], limits=KeyLimits(requests_per_minute=3, concurrent_chats=2))
    _, other = store.rotate(record.id, overlap_s=60)

    words = ["--tokens-per-minute", "500", "--concurrent-chats", "default", "--budget", "9/day", "--guard", "enforce"]
    result = keys("change", record.id, *words)

    assert other.id in result.output
    assert "3 requests/min, 500 tokens/min, budget 9/day, guard enforce" in " ".join(result.output.split())
    changed, related = store.get(record.id), store.get(other.id)
    for key in (changed, related):
        assert key.limits == KeyLimits(requests_per_minute=3, tokens_per_minute=500)
        assert key.budget == Budget(tokens=9, period=Period.DAY)
    assert (changed.guard, related.guard) == (GuardMode.ENFORCE, None)
    keys("change", record.id, "--budget", "none", "--guard", "charter")
    assert (store.get(record.id).budget, store.get(record.id).guard) == (None, None)
    assert store.get(record.id).limits == changed.limits


def test_a_key_is_rotated_with_an_overlap(keys: Any, store: KeyStore) -> None:
    """The successor may do the same; both work until the overlap is over."""
    old, record = store.create("team", [Scope.REVIEW], limits=KeyLimits(requests_per_minute=3))

    new = store.find(made(keys("rotate", record.id, "--overlap", "12h")))

    assert (new.name, new.scopes, new.limits, new.counted_as) == ("team", [Scope.REVIEW], record.limits, record.id)
    assert new.expires is None
    assert store.find(old).expires == pytest.approx(time.time() + 12 * 3600, abs=30)
    assert store.find(old).replaced_by == new.id


def test_a_rotation_never_prolongs_the_old_key(keys: Any, store: KeyStore) -> None:
    """An overlap ends when the key would have ended anyway; one of 0 ends it now. A new end may be given."""
    _, short = store.create("short", [Scope.CHAT], ttl_s=600)
    leaked, stolen = store.create("stolen", [Scope.CHAT])

    made(keys("rotate", short.id, "--overlap", "30d", "--expires", "2d"))
    made(keys("rotate", stolen.id, "--overlap", "0"))

    assert store.get(short.id).expires == short.expires
    assert store.all()[-2].expires == pytest.approx(time.time() + 2 * 86400, abs=30)
    with pytest.raises(Unauthenticated, match="expired"):
        store.find(leaked)


def test_usage_is_shown_by_the_day(keys: Any, store: KeyStore, client: Redis) -> None:
    """With what is used of the budget."""
    _, record = store.create("team", [Scope.CHAT], budget=budget_of("1000/month"))
    assert "was not used" in keys("usage", record.id).output
    LimitStore(client).exchange("gateway", 1, [Spent(record.id, requests=3, tokens=450)], {})

    output = keys("usage", record.id).output

    assert re.search(r"\d{4}-\d\d-\d\d\W+3\W+450\b", output)
    assert "450 of 1,000/month tokens are used." in output


def test_a_record_from_before_there_were_limits_still_loads(store: KeyStore, client: Redis) -> None:
    """It has the gateway's limits, no budget, and can be rotated."""
    key, record = store.create("old", [Scope.CHAT])
    (stored,) = client.hgetall(KEYS)
    old = record.model_dump_json(exclude={"limits", "budget", "account", "replaced_by"})
    client.hset(KEYS, stored, old)

    assert KeyRecord.model_validate_json(old) == store.find(key) == record
    assert store.rotate(record.id, overlap_s=1)[1].counted_as == record.id


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43200), ("1.5d", 129600), ("4W", 2419200)])
def test_lengths_of_time_are_read(text: str, seconds: float) -> None:
    """Minutes, hours, days and weeks."""
    assert seconds_of(text) == overlap_of(text) == lifetime_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "12", "h", "-1h", "1y", "1e3d", "nan", "999999w", "1h30m", "٣h"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    """Also what Python would take for a number."""
    with pytest.raises(CommandError, match="is not a length of time"):
        lifetime_of(text)


@pytest.mark.parametrize("text", ["", "5", "0/day", "5/year", "-5/day", "1.5/day", "5/day/month", "1１/day", "1e3/day"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    """A number of tokens and a period, nothing else."""
    with pytest.raises(CommandError, match="is not a budget"):
        budget_of(text)


def test_what_is_done_to_keys_here_is_on_the_record(keys: Any, store: KeyStore, client: Redis) -> None:
    """Beside the gateway, too: begun and done, by whom, to which key, and never the key itself."""
    key = made(keys("create", "team"))
    record = store.all()[0]
    keys("rotate", record.id)
    keys("revoke", record.id)

    entries = [entry for entry in AuditLog(client).recent(50) if entry.action.startswith("vcllm keys")]
    done = [(entry.action, entry.target) for entry in reversed(entries) if entry.outcome == "done"]
    assert done == [(f"vcllm keys {verb}", record.id) for verb in ("create", "rotate", "revoke")]
    assert all(entry.actor.startswith("operator:") for entry in entries)
    assert not any(key in entry.model_dump_json() for entry in entries)


def test_a_successor_is_guarded_as_its_key_was(keys: Any, store: KeyStore) -> None:
    """A rotation must not open what the old key had closed."""
    made(keys("create", "strict", "--guard", "enforce"))
    old = store.all()[0]
    made(keys("rotate", old.id))

    assert [record.guard for record in store.all()] == ["enforce", "enforce"]
    assert "enforce" in keys("list").output
