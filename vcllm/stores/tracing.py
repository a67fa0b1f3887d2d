"""From a version to all it was made of, and from a pair to all who made it and learned from it.

Put together from what stands where it was written down: manifests in the model store, pairs and ledger in Redis, the
gate's records. Reading makes nothing: a lineage nobody has begun stays unbegun.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import ValidationError
from redis import Redis

from vcllm.contracts.lineage import PREFIX_LENGTH, PairMakers, PairStamp, PairTrace, VersionTrace
from vcllm.contracts.manifests import Manifest, Role
from vcllm.contracts.pairs import Pair, pair_id
from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.stores.connect import pairs_dead_key, pairs_key, pairs_seen_key, pairs_used_key
from vcllm.stores.gates import GateRecords
from vcllm.stores.models import ModelStore

PAGE = 1000
"""Pairs read from a stream at a time."""
FINGERPRINT = re.compile(r"fp_([0-9a-f]{12})")
"""`system_fingerprint` of a chat reply: the beginning of the version's checksum."""


def find_version(store: ModelStore, role: Role, name: str) -> str:
    """The version of a name, or of a reply's `system_fingerprint`; NotFound where there is none."""
    if fingerprint := FINGERPRINT.fullmatch(name):
        for manifest in store.manifests(role):
            if store.checksum(role, manifest.name).startswith(fingerprint[1]):
                return manifest.name
        raise NotFound(f"No {role} version has the fingerprint '{name}'.", code="model_not_found")
    return store.manifest(role, name).name


def trace_version(redis: Redis, store: ModelStore, role: Role, name: str) -> VersionTrace:
    """NotFound for a version that is not in the store. name: see `find_version`."""
    manifest = store.manifest(role, find_version(store, role, name))
    family = [one for one in store.manifests(role) if one.lineage == manifest.lineage]
    pairs = find_pairs(redis, manifest.lineage, manifest.pairs)
    known = [(id, pairs[id]) for id in manifest.pairs if id in pairs]
    first_used, replayers = {id: one.name for one in family for id in one.pairs}, _replayers(family)
    return VersionTrace(
        role=role,
        name=manifest.name,
        lineage=manifest.lineage,
        stage=manifest.stage,
        round=manifest.round,
        created=manifest.created,
        parents=list(_parents(store, manifest)),
        recipe_hash=manifest.recipe_hash,
        charter=manifest.charter,
        dataset=manifest.dataset,
        job=manifest.job,
        trace=manifest.trace,
        gate=GateRecords(redis, manifest.lineage).of(manifest.name) if role == "actor" else None,
        makers=_makers([pair for _, pair in known]),
        sources=dict(Counter(pair.source for _, pair in known)),
        pairs=[_stamp(id, pair, replayers.get(id, [])) for id, pair in known],
        missing=[id for id in manifest.pairs if id not in pairs],
        replayed={id: first_used.get(id) for id in manifest.replayed},
    )


def trace_pair(redis: Redis, store: ModelStore, lineage: str, name: str) -> PairTrace:
    """name: the pair's id, or the first hex digits of it. NotFound where the lineage has no such pair."""
    id = find_pair_id(redis, lineage, name)
    client: Any = redis
    used_by = client.hget(pairs_used_key(lineage), id)
    pair, buried = find_pairs(redis, lineage, [id]).get(id), _buried(redis, lineage).get(id)
    if pair is None:
        raise NotFound(f"Pair '{id}' of lineage '{lineage}' cannot be read: {buried or 'its stream has lost it'}.")
    state: Literal["waiting", "used", "given_up"] = "waiting"
    if used_by is not None:
        state = "used"
    elif buried is not None:
        state = "given_up"
    family = [one for one in store.manifests("actor") if one.lineage == lineage]
    return PairTrace(
        id=id,
        pair=pair,
        state=state,
        reason=buried or "",
        used_by=used_by,
        replayed_by=_replayers(family).get(id, []),
    )


def find_pair_id(redis: Redis, lineage: str, name: str) -> str:
    """The whole id of a pair; BadRequest for what names none or several, NotFound for what names nothing there is."""
    if not re.fullmatch(rf"[0-9a-f]{{{PREFIX_LENGTH},64}}", name):
        raise BadRequest(f"'{name}' is no pair. Give its id, or at least the first {PREFIX_LENGTH} hex digits of it.")
    client: Any = redis
    found = sorted(set(client.sscan_iter(pairs_seen_key(lineage), match=f"{name}*", count=PAGE)))
    if not found:
        raise NotFound(f"Lineage '{lineage}' has no pair whose id begins with '{name}'.")
    if len(found) > 1:
        raise BadRequest(f"{len(found)} pairs of lineage '{lineage}' begin with '{name}': give more of the id.")
    return str(found[0])


def find_pairs(redis: Redis, lineage: str, ids: Collection[str]) -> dict[str, Pair]:
    """The pairs with these ids, as far as the lineage's stream holds them."""
    wanted, found = set(ids), dict[str, Pair]()
    if not wanted:
        return found
    for raw in _stored(redis, lineage):
        if (id := _id_of(raw)) in wanted:
            with suppress(ValidationError):  # the trainer sets it aside and says why
                found[id] = Pair.model_validate_json(raw)
            if len(found) == len(wanted):
                break
    return found


def _id_of(raw: str) -> str:
    """The hash of the very fields that were queued, whatever has been added to the contract since; empty: no pair."""
    try:
        return pair_id(json.loads(raw))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""


def _stored(redis: Redis, lineage: str) -> Iterator[str]:
    """The JSON of every pair ever queued in a lineage, oldest first."""
    client: Any = redis
    start = "-"
    while rows := client.xrange(pairs_key(lineage), start, "+", count=PAGE):
        start = f"({rows[-1][0]}"
        yield from (fields["pair"] for _, fields in rows if "pair" in fields)


def _buried(redis: Redis, lineage: str) -> dict[str, str]:
    """Pairs that were given up, by id, with the reason."""
    client: Any = redis
    found = {}
    for _, row in client.xrange(pairs_dead_key(lineage)):
        found[_id_of(json.loads(row["fields"]).get("pair", ""))] = str(row["reason"])
    return found


def _parents(store: ModelStore, manifest: Manifest) -> Iterator[str]:
    """What each was trained from, as far as the store still has it."""
    seen = {f"{manifest.role}/{manifest.name}"}
    while manifest.parent is not None:
        role, _, name = manifest.parent.rpartition("/")
        parent = f"{role or manifest.role}/{name}"
        if parent in seen:
            return  # no trainer writes this; a store edited by hand must not hang the gateway
        seen.add(parent)
        yield parent
        try:
            manifest = store.manifest(role or manifest.role, name)
        except NotFound:
            return


def _replayers(family: Sequence[Manifest]) -> dict[str, list[str]]:
    """By pair, the versions that saw it again, oldest first."""
    found: dict[str, list[str]] = defaultdict(list)
    for manifest in family:
        for id in manifest.replayed:
            found[id].append(manifest.name)
    return found


def _makers(pairs: Sequence[Pair]) -> list[PairMakers]:
    counts = Counter(
        (pair.provenance.attacker, pair.provenance.actor, pair.provenance.critic, pair.source) for pair in pairs
    )
    return [
        PairMakers(attacker=attacker, actor=actor, critic=critic, source=source, num_pairs=number)
        for (attacker, actor, critic, source), number in counts.most_common()
    ]


def _stamp(id: str, pair: Pair, replayed_by: list[str]) -> PairStamp:
    rejected = pair.rejected_critique
    return PairStamp(
        id=id,
        kind=pair.kind,
        cell=pair.cell,
        source=pair.source,
        attacker=pair.provenance.attacker,
        actor=pair.provenance.actor,
        critic=pair.provenance.critic,
        chosen_score=pair.chosen_critique.score,
        rejected_score=None if rejected is None else rejected.score,
        trace=pair.provenance.trace,
        replayed_by=replayed_by,
    )
