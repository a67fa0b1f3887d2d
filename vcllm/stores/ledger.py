"""Proof that every approved pair took effect exactly once: the stream, the ledger and the manifests must agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream


@dataclass(frozen=True)
class LedgerCheck:
    """Counts of one lineage, and everything that does not add up."""

    approved: int
    used: int
    waiting: int
    dead: int
    faults: list[str] = field(default_factory=list)


def check_ledger(stream: PairStream, store: ModelStore) -> LedgerCheck:
    """Compare what was approved, what the ledger says was used, and what the committed versions list."""
    approved = [pair.id for pair in stream.entries().values()]
    ledger = stream.used_by()
    manifests = [one for one in store.manifests("actor") if one.lineage == stream.lineage]
    listed = {pair: one.name for one in manifests for pair in one.pairs}
    times_listed = Counter(pair for one in manifests for pair in one.pairs)
    faults = [f"pair {pair} was approved {n} times" for pair, n in Counter(approved).items() if n > 1]
    faults += [f"pair {pair} is listed as new by {n} versions" for pair, n in times_listed.items() if n > 1]
    faults += [f"pair {pair} was trained on but never approved" for pair in listed.keys() - set(approved)]
    faults += [f"pair {pair} is in the ledger but in no manifest" for pair in ledger.keys() - listed.keys()]
    faults += [
        f"pair {pair}: the ledger says {ledger[pair]}, the manifest {listed[pair]}"
        for pair in ledger.keys() & listed.keys()
        if ledger[pair] != listed[pair]
    ]
    faults += [
        f"{one.name} replays pair {pair}, which no version had used before"
        for one in manifests
        for pair in one.replayed
        if pair not in listed
    ]
    return LedgerCheck(len(approved), len(ledger), stream.waiting(), stream.dead(), faults)
