"""The audit log is one chain, and any change to what was written is found."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.servers import free_port, wait_until
from vcllm.contracts.audit import EMPTY, Anchor, AuditEntry, Deed, Outcome, as_target, link, parse_anchor
from vcllm.contracts.problems import Conflict, Unavailable
from vcllm.stores.audit import PAGE, AuditLog
from vcllm.stores.audit_chain import check_chain
from vcllm.stores.audit_copy import copy_of, end_of_copy, extend_copy, lines_of
from vcllm.stores.connect import AUDIT, AUDIT_HEAD, open_redis

DONE = Deed(actor="0a1b2c3d", action="POST /v1/jobs", target="job-1", outcome=Outcome.DONE, status=201)


@pytest.fixture
def log(client: Redis) -> AuditLog:
    return AuditLog(client)


def filled(log: AuditLog, number: int) -> list[AuditEntry]:
    return [log.append(DONE.model_copy(update={"target": f"job-{n}"})) for n in range(number)]


def chain(number: int) -> list[bytes]:
    """Lines of a chain that no store has seen."""
    lines, after = [], EMPTY
    for n in range(number):
        entry = link(DONE.model_copy(update={"target": f"job-{n}"}), after, 1000.0 + n)
        lines.append(entry.line())
        after = Anchor(seq=entry.seq, hash=entry.hash)
    return lines


def end_of(lines: list[bytes]) -> Anchor:
    return check_chain(lines).sound


def put_back(client: Redis, lines: list[bytes]) -> None:
    """As somebody would who may write to Redis: the stream made anew, its head left as it is."""
    client.delete(AUDIT)
    for seq, line in enumerate(lines, start=1):
        client.xadd(AUDIT, {"entry": line}, id=f"{seq}-0")


# Any change is found.


def changed(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    """One byte of one entry is another; the entry's number."""
    at = chance.randrange(len(lines))
    line = bytearray(lines[at])
    place = chance.randrange(len(line))
    line[place] = chance.choice([value for value in range(256) if value != line[place]])
    return [*lines[:at], bytes(line), *lines[at + 1 :]], at + 1


def rewritten(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    """One entry says something else, with a hash that fits it: the next one gives it away, or the head."""
    at = chance.randrange(len(lines))
    was = AuditEntry.model_validate_json(lines[at])
    deed = Deed(**was.model_dump(include=set(Deed.model_fields)) | {"actor": "somebody"})
    forged = link(deed, Anchor(seq=was.seq - 1, hash=was.prev), was.time)
    last = at == len(lines) - 1
    return [*lines[:at], forged.line(), *lines[at + 1 :]], at + 1 if last else at + 2


def without_one(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    at = chance.randrange(len(lines))
    return lines[:at] + lines[at + 1 :], at + 1


def reordered(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    one, other = sorted(chance.sample(range(len(lines)), 2))
    swapped = list(lines)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    return swapped, one + 1


def inserted(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    """A new entry that is chained to what stands before it: the next one gives it away, or the head."""
    at = chance.randrange(len(lines))
    new = link(DONE, end_of(lines[:at]), 5.0).line()
    last = at == len(lines) - 1
    return [*lines[:at], new, *lines[at:]], at + 1 if last else at + 2


def repeated(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    """An old entry once more, or the one that was just written twice."""
    at = chance.randrange(len(lines))
    return [*lines[: at + 1], lines[chance.randrange(at + 1)], *lines[at + 1 :]], at + 2


def cut(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    kept = chance.randrange(len(lines))
    return lines[:kept], kept + 1


CHANGES = [changed, rewritten, without_one, reordered, inserted, repeated, cut]


@pytest.mark.parametrize("change", CHANGES, ids=[one.__name__ for one in CHANGES])
def test_any_change_is_found_where_it_is(change: Callable[[list[bytes], random.Random], tuple[list[bytes], int]]):
    """200 seeded ones of each kind, in chains of up to 40 entries; the number told is that of the first bad entry."""
    for seed in range(200):
        chance = random.Random(seed)
        lines = chain(chance.randint(2, 40))
        head = end_of(lines)
        after, bad = change(lines, chance)

        check = check_chain(after, head=head)

        assert check.fault is not None, (seed, change.__name__)
        assert check.at == bad, (seed, check)


@pytest.mark.parametrize("change", CHANGES, ids=[one.__name__ for one in CHANGES])
def test_a_change_in_redis_is_found(
    log: AuditLog, client: Redis, change: Callable[[list[bytes], random.Random], tuple[list[bytes], int]]
):
    """The very bytes that are stored, also those that are no text any more."""
    filled(log, 12)
    lines = list(log.lines())
    for seed in range(15):
        after, bad = change(lines, random.Random(seed))
        put_back(client, after)

        assert log.check().at == bad
    put_back(client, lines)
    assert log.check().fault is None


def test_a_whole_chain_is_whole(log: AuditLog):
    """Over more than a page of entries; it ends where the head says."""
    last = filled(log, PAGE + 3)[-1]

    check = log.check(Anchor(seq=1, hash=next(iter(filled_hashes(log)))))

    assert (check.fault, check.at) == (None, None)
    assert check.sound == log.head() == Anchor(seq=last.seq, hash=last.hash)


def filled_hashes(log: AuditLog) -> list[str]:
    return [json.loads(line)["hash"] for line in log.lines()]


def test_an_anchor_finds_a_chain_that_was_made_anew(log: AuditLog, client: Redis):
    """Whoever writes to Redis can make another whole chain; not one that goes through what was noted elsewhere."""
    filled(log, 5)
    noted = log.head()
    client.delete(AUDIT, AUDIT_HEAD)
    filled(AuditLog(client), 8)

    assert log.check().fault is None
    assert log.check(noted).at == 5


def test_a_chain_that_was_cut_with_its_head_is_found_by_an_anchor(log: AuditLog, client: Redis):
    """The head was set back to fit: without an anchor nothing is missing, with one it is."""
    entries = filled(log, 6)
    noted = log.head()
    client.xdel(AUDIT, "5-0", "6-0")
    client.hset(AUDIT_HEAD, mapping={"seq": 4, "hash": entries[3].hash})

    assert log.check().fault is None
    check = log.check(noted)

    assert (check.at, check.sound.seq) == (5, 4)
    assert "entry 6" in str(check.fault)


def test_an_entry_behind_the_head_is_found_and_nothing_is_entered_after_it(log: AuditLog, client: Redis):
    """Chained well, but not by this log."""
    filled(log, 3)
    forged = link(DONE, log.head(), 5.0)
    client.xadd(AUDIT, {"entry": forged.line()}, id="4-0")

    assert log.check().at == 4
    with pytest.raises(Unavailable, match="damaged"):
        log.append(DONE)


def test_a_log_without_its_head_takes_nothing(client: Redis):
    """A second chain beside the first would be worse than none."""
    filled(AuditLog(client), 3)
    client.delete(AUDIT_HEAD)

    with pytest.raises(Unavailable, match="damaged"):
        AuditLog(client).append(DONE)


# One chain, whoever writes.


def test_eight_writers_keep_one_chain(redis_url: str):
    """Each with its own client, as gateways have: no entry is lost, none is written twice."""

    def write(writer: int) -> None:
        with open_redis(redis_url) as own:
            log = AuditLog(own)
            for n in range(25):
                log.append(DONE.model_copy(update={"actor": f"w{writer}", "target": f"job-{n}"}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))

    with open_redis(redis_url) as client:
        log = AuditLog(client)
        check = log.check()
        entries = [json.loads(line) for line in log.lines()]
    assert (check.fault, check.sound.seq) == (None, 200)
    assert len({(entry["actor"], entry["target"]) for entry in entries}) == 200


def test_one_log_may_be_used_by_many_threads(log: AuditLog):
    """As the gateway does."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: log.append(DONE), range(100)))

    assert (log.check().fault, log.head().seq) == (None, 100)


WRITER = """
import sys
from tests.unit.test_stores_audit import DONE
from vcllm.stores.audit import AuditLog
from vcllm.stores.connect import open_redis
log = AuditLog(open_redis(sys.argv[1]))
while True:
    log.append(DONE)
"""


def test_a_writer_that_is_killed_leaves_a_whole_chain(redis_url: str, log: AuditLog):
    """Kill -9 of three writers at once, in the middle of what they do; the next one goes on."""
    command = [sys.executable, "-c", WRITER, redis_url]
    writers = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(3)]
    try:
        wait_until(lambda: log.head().seq > 150, timeout_s=30)
    finally:
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()

    reached = log.head().seq
    log.append(DONE)
    check = log.check()
    assert (check.fault, check.sound.seq) == (None, reached + 1)


class LosesReplies:
    """A Redis whose first reply to an append gets lost, so that the client sends it again."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def eval(self, *told: object) -> object:
        self.redis.eval(*told)  # type: ignore[arg-type]
        return self.redis.eval(*told)  # type: ignore[arg-type]

    def hmget(self, *told: object) -> object:
        return self.redis.hmget(*told)  # type: ignore[arg-type]


def test_an_append_that_is_sent_twice_is_entered_once(client: Redis):
    """What the client library does after a lost connection."""
    log = AuditLog(LosesReplies(client))  # type: ignore[arg-type]
    log.append(DONE)
    log.append(DONE)

    assert (AuditLog(client).check().fault, client.xlen(AUDIT)) == (None, 2)


def test_a_log_that_cannot_be_written_says_so():
    """The error passes through: what depends on the entry is not done."""
    with open_redis(f"redis://127.0.0.1:{free_port()}/0", patience=0) as away, pytest.raises(RedisConnectionError):
        AuditLog(away).append(DONE)


# What is entered.


def test_a_deed_is_entered_before_it_is_done_and_when_it_has_ended(log: AuditLog):
    """One that fails is told to have failed, and the error goes on."""
    with log.deed("trainer:job-1", "promote actor", "v2"):
        assert [entry.outcome for entry in log.recent(9)] == ["begun"]
    with pytest.raises(ZeroDivisionError), log.deed("trainer:job-1", "promote actor", "v3"):
        raise ZeroDivisionError

    rows = [(entry.seq, entry.target, entry.outcome, entry.of) for entry in reversed(log.recent(9))]
    assert rows == [(1, "v2", "begun", None), (2, "v2", "done", 1), (3, "v3", "begun", None), (4, "v3", "failed", 3)]


def test_the_newest_entries_come_first_and_in_pages(log: AuditLog):
    """With the number to ask for older ones."""
    filled(log, 5)

    assert [entry.seq for entry in log.recent(2)] == [5, 4]
    assert [entry.seq for entry in log.recent(9, before=4)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("job-20261128-0a", "job-20261128-0a"),
        ("0a1b2c3d", "0a1b2c3d"),
        (f"vck_0a1b2c3d_{'a' * 43}", "(not an id)"),
        ("Who may speak?", "(not an id)"),
        ("x" * 65, "(not an id)"),
        ("你好", "(not an id)"),
        ("", "(not an id)"),
        (None, None),
        (3, None),
    ],
)
def test_only_ids_are_entered_as_targets(value: object, expected: str | None):
    """An address may hold a pasted key, or a text."""
    assert as_target(value) == expected


def test_an_anchor_is_read_as_it_is_printed():
    """And nothing else is taken for one."""
    anchor = end_of(chain(3))

    assert parse_anchor(f" {anchor}\n") == anchor
    for wrong in ("", "3", "3:", f"-3:{anchor.hash}", f"3:{anchor.hash[:-1]}", f"x:{anchor.hash}"):
        with pytest.raises(ValueError, match="SEQ:HASH"):
            parse_anchor(wrong)


# The copy.


def test_a_copy_takes_what_it_lacks(log: AuditLog, tmp_path: Path):
    """Line by line the stored bytes; readable by its owner only."""
    file = copy_of(tmp_path)
    filled(log, 3)
    extend_copy(log, file)
    filled(log, 4)

    end = extend_copy(log, file)

    assert end == log.head() == end_of_copy(file)
    assert list(lines_of(file)) == list(log.lines())
    assert file.stat().st_mode & 0o777 == 0o600
    assert check_chain(lines_of(file)).fault is None


def test_an_interrupted_copy_is_mended(log: AuditLog, tmp_path: Path):
    """Half a line at its end is no entry, and is written anew."""
    file = copy_of(tmp_path)
    filled(log, 5)
    extend_copy(log, file)
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) - 40, 10):
        file.write_bytes(whole[:size])

        extend_copy(log, file)

        assert file.read_bytes() == whole


def test_a_copy_notices_that_the_log_was_cut_or_made_anew(log: AuditLog, client: Redis, tmp_path: Path):
    """Nothing is added to it then: it is the proof."""
    file = copy_of(tmp_path)
    filled(log, 5)
    extend_copy(log, file)
    before = file.read_bytes()
    for number in (0, 3, 7):
        client.delete(AUDIT, AUDIT_HEAD)
        filled(AuditLog(client), number)

        with pytest.raises(Conflict, match="changed or cut"):
            extend_copy(AuditLog(client), file)
    assert file.read_bytes() == before


def test_copies_made_at_once_are_one(redis_url: str, log: AuditLog, tmp_path: Path):
    """Several gateways share a folder."""
    filled(log, 50)
    file = copy_of(tmp_path)

    def copy(_: int) -> None:
        with open_redis(redis_url) as own:
            extend_copy(AuditLog(own), file)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(copy, range(6)))

    assert list(lines_of(file)) == list(log.lines())
