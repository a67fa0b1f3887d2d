"""Aliases move in one step, keys are found by the whole key only, and events can be read from any point."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

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


def test_replay_from_any_id_is_complete_and_in_order(events: EventLog):
    """Thousands of events, read from random places while more are appended; every reader sees all that follow."""
    chance = random.Random(7)
    ids = [events.append("job-1", "progress", step=number) for number in range(3000)]

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [events.append("job-1", "progress", step=n) for n in range(3000, 4000)])
        starts = [chance.randrange(len(ids)) for _ in range(12)]
        seen = {start: steps_after(events, ids[start], last=3999) for start in starts}
        writing.result()

    assert all(steps == list(range(start + 1, 4000)) for start, steps in seen.items())


def steps_after(events: EventLog, after: str, last: int) -> list[int]:
    """Steps of all events after an id, page by page, until the last one was seen."""
    steps: list[int] = []
    while not steps or steps[-1] < last:
        replay = events.replay("job-1", after, limit=333)
        assert replay.gap is None
        steps += [event.data["step"] for event in replay.events]
        after = replay.events[-1].id if replay.events else after
    return steps


def test_a_gap_is_told_to_those_who_miss_something_and_to_nobody_else(client: Redis):
    """Of 1,000 events the newest are kept; the dividing line is exactly the newest one that is gone."""
    events = EventLog(client, kept=100, dropped_at_once=30)
    ids = [events.append("job-1", "progress", step=number) for number in range(1000)]

    kept = events.replay("job-1", limit=1000)
    assert kept.gap is not None
    first = kept.gap.num_gone

    assert 100 <= len(kept.events) < 130
    assert [event.id for event in kept.events] == ids[first:]
    assert kept.gap.until == ids[first - 1]
    for place in (0, first - 2, first - 1, first, 999):
        replay = events.replay("job-1", ids[place], limit=1000)
        assert (replay.gap is not None) == (place < first - 1)
        assert [event.data["step"] for event in replay.events] == list(range(max(place + 1, first), 1000))


def test_a_reader_who_is_overtaken_is_told(client: Redis):
    """Events are dropped while it reads: its pages and the gaps it was told of account for all of them."""
    events, after, seen = EventLog(client, kept=50, dropped_at_once=10), "0", 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [events.append("job-1", "progress", step=n) for n in range(600)])
        expected = 0
        while not writing.done() or expected < 600:
            replay = events.replay("job-1", after, limit=7)
            if replay.gap is not None:
                assert replay.gap.num_gone > expected
                expected = replay.gap.num_gone
            for event in replay.events:
                assert event.data["step"] == expected
                expected, after, seen = expected + 1, event.id, seen + 1

    assert 0 < seen <= 600


def test_newest_events_are_paged_backwards(events: EventLog):
    """Each page goes on before the last id of the page before."""
    ids = [events.append("job-1", "log", text=str(number)) for number in range(7)]

    seen, before = [], None
    while page := events.newest("job-1", before, limit=3):
        seen += [event.id for event in page]
        before = seen[-1]

    assert seen == ids[::-1]


@pytest.mark.parametrize("place", ["0", "0-0", f"{2**64 - 1}-{2**64 - 1}"])
def test_both_ends_of_all_ids_are_places(events: EventLog, place: str):
    """Before the first and after the last there is nothing, and no error of Redis either."""
    events.append("job-1", "log", text="a")

    assert len(events.replay("job-1", place).events) == (place[0] == "0")
    assert len(events.newest("job-1", place)) == (place[0] != "0")


def test_every_move_of_current_is_kept_with_who_and_why(aliases: AliasStore):
    """Newest first; what moves nothing, and other aliases, leave no entry."""
    aliases.promote("actor", "v1")
    aliases.promote("actor", "v2", "key-1", "better 更好")
    aliases.promote("actor", "v2", "key-2")
    aliases.set("actor", "candidate", "v3")
    aliases.roll_back("actor", "key-3")

    told = [(move.version, move.before, move.by, move.note) for move in aliases.history("actor")]
    assert told == [
        ("v1", "v2", "key-3", "rolled back"),
        ("v2", "v1", "key-1", "better 更好"),
        ("v1", None, "trainer", ""),
    ]
    assert aliases.history("critic") == []


def test_a_version_takes_the_place_of_the_one_that_is_named_or_of_none(aliases: AliasStore):
    """Whoever looked before somebody else promoted is told what is current now."""
    aliases.promote("actor", "v1")
    aliases.promote("actor", "v2", expect="v1")

    with pytest.raises(Conflict, match="'v2' is the current actor"):
        aliases.promote("actor", "v3", expect="v1")
    assert aliases.all("actor") == {"current": "v2", "previous": "v1"}
