"""Aliases move in one step, keys are found by the whole key only, and events can be read from any point."""

from __future__ import annotations

import time

import pytest
from pydantic import SecretStr
from redis import Redis

from vcllm.contracts.keys import Scope
from vcllm.contracts.problems import BadRequest, Conflict, NotFound, Unauthenticated
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.events import EventLog


@pytest.fixture
def aliases(client: Redis) -> AliasStore:
    return AliasStore(client)


@pytest.fixture
def keys(client: Redis) -> KeyStore:
    return KeyStore(client, SecretStr("pepper"))


@pytest.fixture
def events(client: Redis) -> EventLog:
    return EventLog(client)


def test_promoting_keeps_the_version_before(aliases: AliasStore):
    """`current` becomes `previous`; promoting the same version again changes nothing."""
    aliases.promote("actor", "v1")
    aliases.promote("actor", "v2")
    aliases.promote("actor", "v2")

    assert aliases.all("actor") == {"current": "v2", "previous": "v1"}
    assert aliases.all("critic") == {}


def test_rolling_back_twice_is_where_it_began(aliases: AliasStore):
    """It swaps the two, so it can be undone."""
    aliases.promote("actor", "v1")
    aliases.promote("actor", "v2")

    assert aliases.roll_back("actor") == "v1"
    assert aliases.get("actor", "previous") == "v2"
    assert aliases.roll_back("actor") == "v2"


def test_without_a_previous_version_there_is_no_way_back(aliases: AliasStore):
    """Neither with nothing promoted, nor after the first promotion, nor with half a record."""
    with pytest.raises(Conflict):
        aliases.roll_back("actor")
    aliases.promote("actor", "v1")
    with pytest.raises(Conflict):
        aliases.roll_back("actor")
    aliases.set("critic", "previous", "c1")
    with pytest.raises(Conflict):
        aliases.roll_back("critic")
    assert aliases.get("actor") == "v1"


def test_a_key_is_found_with_its_scopes(keys: KeyStore):
    """The record is what `create` gave; the hint is not enough to use it."""
    key, record = keys.create("team", [Scope.CHAT, Scope.JOBS_READ])

    assert keys.find(key) == record
    assert key.startswith(record.hint)
    assert len(record.hint) < 16


def test_no_key_and_no_plain_hash_is_stored(keys: KeyStore, client: Redis):
    """Whoever reads the database cannot call the API."""
    key, _ = keys.create("team", [Scope.CHAT])
    stored = repr([client.hgetall(name) for name in client.scan_iter()])

    assert key not in stored
    assert key.rsplit("_", 1)[1] not in stored
    with pytest.raises(Unauthenticated):
        keys.find(next(iter(client.hgetall("vcllm:keys"))))


def test_only_the_whole_key_is_the_key(keys: KeyStore, client: Redis):
    """Not a prefix of it, not one with a changed end, not the key under another pepper."""
    key, _ = keys.create("team", [Scope.CHAT])
    end = "A" if key[-1] != "A" else "B"

    for wrong in (key[:-1], key[:-1] + end, key + "x", ""):
        with pytest.raises(Unauthenticated):
            keys.find(wrong)
    with pytest.raises(Unauthenticated):
        KeyStore(client, SecretStr("another")).find(key)


def test_an_expired_key_is_refused(keys: KeyStore):
    """From the second it expires."""
    key, _ = keys.create("team", [Scope.CHAT], ttl_s=0.05)
    keys.find(key)
    time.sleep(0.1)

    with pytest.raises(Unauthenticated, match="expired"):
        keys.find(key)


def test_a_revoked_key_is_gone(keys: KeyStore):
    """The others stay; revoking it again says that there is none."""
    key, record = keys.create("old", [Scope.CHAT])
    _, kept = keys.create("new", [Scope.CHAT])

    keys.revoke(record.id)

    assert keys.all() == [kept]
    with pytest.raises(Unauthenticated):
        keys.find(key)
    with pytest.raises(NotFound):
        keys.revoke(record.id)


def test_events_are_read_from_any_point(events: EventLog):
    """Every id is a place to carry on from; the reader sees each later event once."""
    ids = [events.append("job-1", "progress", step=number) for number in range(5)]

    assert [event.id for event in events.read("job-1")] == ids
    for position, id in enumerate(ids):
        later = events.read("job-1", after=id)
        assert [event.data["step"] for event in later] == list(range(position + 1, 5))


def test_events_are_read_page_by_page(events: EventLog):
    """Following the last id of each page gives all of them, once."""
    ids = [events.append("job-1", "log", text="谁说的") for _ in range(7)]

    seen, after = [], "0"
    while page := events.read("job-1", after, limit=3):
        seen += [event.id for event in page]
        after = seen[-1]

    assert seen == ids


def test_a_reader_may_wait_for_the_next_event(events: EventLog):
    """Without one it gets an empty list after the time it gave."""
    begun = time.monotonic()

    assert events.read("job-1", block_s=0.1) == []
    assert 0.05 < time.monotonic() - begun < 2


@pytest.mark.parametrize("after", ["$", "-", "abc", "1-2-3", "", "1\n"])
def test_what_is_no_event_id_is_refused(events: EventLog, after: str):
    """Before it reaches Redis."""
    with pytest.raises(BadRequest):
        events.read("job-1", after)
