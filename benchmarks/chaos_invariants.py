"""What must be true after whatever was killed: one function for each invariant, which names every fault it finds.

They look at facts, read once from the ledger, the model store and what clients were told. None of them knows what was
killed, or when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from benchmarks.chaos_chat import Reply
from vcllm.contracts.jobs import Event, JobRecord, JobState
from vcllm.contracts.manifests import ROLES, Manifest
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import pairs_seen_key
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream


@dataclass(frozen=True)
class Books:
    """The pairs of one lineage, from three sides."""

    seen: frozenset[str]
    """Every pair the stream ever took, by the set that keeps it from taking one twice."""
    approved: tuple[str, ...]
    """What the stream holds, in order."""
    used: dict[str, str]
    """The ledger: pair to the version that used it."""
    num_dead: int
    manifests: tuple[Manifest, ...]
    """Of the lineage's Actors, oldest first."""


def read_books(redis: Redis, store: ModelStore, lineage: str) -> Books:
    client: Any = redis
    stream = PairStream(redis, lineage)
    return Books(
        seen=frozenset(client.smembers(pairs_seen_key(lineage))),
        approved=tuple(pair.id for pair in stream.entries().values()),
        used=stream.used_by(),
        num_dead=stream.dead(),
        manifests=tuple(one for one in store.manifests("actor") if one.lineage == lineage),
    )


def no_approved_pair_lost(books: Books) -> list[str]:
    """After the job: each has been learned by a committed version, and the ledger says so."""
    listed = _listed(books)
    faults = [
        f"pair {one} was taken, but the stream does not hold it" for one in sorted(books.seen - {*books.approved})
    ]
    faults += [f"pair {one} is in the stream, but was never taken" for one in sorted({*books.approved} - books.seen)]
    faults += [f"pair {one} was approved, but no version learned it" for one in books.approved if one not in listed]
    faults += [f"pair {one} was learned, but the ledger does not say so" for one in sorted(listed.keys() - books.used)]
    faults += [f"the ledger has pair {one}, which no version learned" for one in sorted(books.used.keys() - listed)]
    return faults + ([f"{books.num_dead} pairs were given up"] if books.num_dead else [])


def no_pair_used_twice(books: Books) -> list[str]:
    """New in one version only, approved once only, and the ledger names that version."""
    listed = _listed(books)
    faults = [f"pair {one} was approved {n} times" for one, n in Counter(books.approved).items() if n > 1]
    faults += [f"pair {one} is new in {', '.join(versions)}" for one, versions in listed.items() if len(versions) > 1]
    return faults + [
        f"pair {one} is new in {listed[one][0]}, but the ledger says {by}"
        for one, by in books.used.items()
        if one in listed and by not in listed[one]
    ]


def no_unapproved_pair_used(books: Books) -> list[str]:
    """Also not as a replayed one: that must have been new in an earlier version."""
    approved, before, faults = set(books.approved), set[str](), list[str]()
    for manifest in books.manifests:
        faults += [f"{manifest.name} learned pair {one}, not approved" for one in manifest.pairs if one not in approved]
        faults += [f"{manifest.name} replayed pair {one}, new to all" for one in manifest.replayed if one not in before]
        before.update(manifest.pairs)
    return faults


def aliases_on_whole_versions(redis: Redis, store: ModelStore) -> list[str]:
    """Every alias leads to a version of which every file was read and is what the manifest says."""
    aliases, faults = AliasStore(redis), list[str]()
    for role in ROLES:
        for alias, version in aliases.all(role).items():
            try:
                store.verify(role, version)
            except Exception as error:  # whatever keeps it from being read is a fault
                faults.append(f"{role} {alias} leads to {version}: {error}")
    return faults


def job_succeeded(record: JobRecord) -> list[str]:
    if record.state is JobState.SUCCEEDED:
        return []
    return [f"the job is {record.state.value}: {record.error or 'no error is told'}"]


def events_whole(events: Sequence[Event]) -> list[str]:
    """In order, each once, and the job's success last of its states."""
    places = [tuple(int(part) for part in event.id.split("-")) for event in events]
    faults = [] if places == sorted(set(places)) else ["events are out of order, or came twice"]
    states = [event.data.get("state") for event in events if event.type == "state"]
    return faults if states[-1:] == ["succeeded"] else [*faults, f"the last state told is {states[-1:] or None}"]


def audit_chain_whole(redis: Redis) -> list[str]:
    """Also nothing but the log's own entries is in it."""
    from vcllm.stores.audit import AuditLog  # here, so that the others can be checked where there is no audit log

    found = AuditLog(redis).check()
    return [] if found.fault is None else [f"audit entry {found.at}: {found.fault}"]


def replies_name_versions_that_existed(replies: Iterable[Reply], promoted: dict[str, float]) -> list[str]:
    """promoted: version of the Actor to when it first became current; Unix seconds."""
    faults = []
    for reply in replies:
        if not reply.is_answer:
            continue
        if reply.version not in promoted:
            faults.append(f"an answer names version '{reply.version}', which was never promoted")
        elif reply.ended < promoted[reply.version]:
            faults.append(f"an answer names version '{reply.version}' before it was promoted")
    return faults


def chat_failed_cleanly(replies: Iterable[Reply]) -> list[str]:
    """Every reply is a whole answer, or an error that says when to come back; see `Reply.fault`."""
    return [fault for reply in replies if (fault := reply.fault())]


def promotions(redis: Redis) -> dict[str, float]:
    """Versions of the Actor to when they first became current."""
    return {move.version: move.when for move in AliasStore(redis).history("actor", limit=1000)}


@dataclass
class Findings:
    """Faults by the invariant that found them."""

    faults: dict[str, list[str]] = field(default_factory=dict)

    def look(self, invariant: Callable[..., list[str]], *facts: Any) -> None:
        """An invariant that cannot even be checked does not hold."""
        try:
            found = invariant(*facts)
        except Exception as error:
            found = [f"it could not be checked: {type(error).__name__}: {error}"]
        if found:
            self.faults[invariant.__name__] = found

    def __bool__(self) -> bool:
        return bool(self.faults)

    def __str__(self) -> str:
        return "; ".join(f"{name}: {faults[0]} ({len(faults)} in all)" for name, faults in self.faults.items())


def _listed(books: Books) -> dict[str, list[str]]:
    """Pair to the versions that list it as new."""
    listed: dict[str, list[str]] = {}
    for manifest in books.manifests:
        for pair in manifest.pairs:
            listed.setdefault(pair, []).append(manifest.name)
    return listed
