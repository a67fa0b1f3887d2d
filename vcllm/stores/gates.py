"""What the gate said of a lineage's candidates, and the word of the people who decided on those it held.

One Redis hash per lineage. A candidate is entered once the gate has spoken; what a person decided is never overwritten.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from redis import Redis
from redis.exceptions import WatchError

from vcllm.contracts.gates import Decided, Gated
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.problems import Conflict, NotFound
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import aliases_key, gates_key


class GateRecords:
    """The verdicts of one lineage; all candidates are versions of the Actor."""

    def __init__(self, redis: Redis, lineage: str) -> None:
        self.redis: Any = redis
        self.lineage = lineage
        self.key = gates_key(lineage)

    def enter(self, candidate: str, parent: str, verdict: GateVerdict) -> Gated:
        """Keep what the gate said, once: the record that is there already comes back, a person's decision in it.

        parent: the version the candidate was measured against. A verdict `hold` makes the candidate wait for `decide`.
        """
        record = Gated(
            lineage=self.lineage, candidate=candidate, parent=parent, verdict=verdict, judged=round(time.time(), 3)
        )
        self.redis.hsetnx(self.key, candidate, record.model_dump_json())
        return self.of(candidate) or record

    def of(self, candidate: str) -> Gated | None:
        """None: the gate was not asked about it, or has not answered yet."""
        kept = self.redis.hget(self.key, candidate)
        return None if kept is None else Gated.model_validate_json(kept)

    def all(self) -> list[Gated]:
        """In the order in which they were judged."""
        records = [Gated.model_validate_json(kept) for kept in self.redis.hvals(self.key)]
        return sorted(records, key=lambda record: record.judged)

    def held(self) -> list[Gated]:
        """Those that wait for a person, longest first."""
        return [record for record in self.all() if record.is_held]

    def decide(
        self,
        candidate: str,
        decision: Literal["promote", "reject"],
        by: str,
        *,
        note: str = "",
        replaces: str | None = None,
    ) -> Gated:
        """Enter a person's word on a held candidate; `promote` makes it current in the same step, both or neither.

        by: id of the key. replaces: what is current now, where that is no longer the version it was measured against.
        NotFound for what the gate has not seen; Conflict for what does not wait, and when another version is current.
        """
        with self.redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(self.key, aliases_key("actor"))
                    record = self._waiting(pipe, candidate)
                    if decision == "promote":
                        _expect(AliasStore(pipe).get("actor"), replaces or record.parent, record)
                    word = Decided(decision=decision, by=by, when=round(time.time(), 3), note=note)
                    after = record.model_copy(update={"decided": word})
                    pipe.multi()
                    pipe.hset(self.key, candidate, after.model_dump_json())
                    if decision == "promote":
                        AliasStore(pipe).promote("actor", candidate, by, note)
                    pipe.execute()
                    return after
                except WatchError:
                    continue  # somebody decided or promoted between our read and our write: look again

    def _waiting(self, pipe: Any, candidate: str) -> Gated:
        kept = pipe.hget(self.key, candidate)
        if kept is None:
            raise NotFound(
                f"The gate has not judged '{candidate}', so there is nothing to decide. "
                "`vcllm models held` lists what waits."
            )
        record = Gated.model_validate_json(kept)
        if record.decided is not None:
            raise Conflict(
                f"'{candidate}' was decided before: {record.decided.decision}, by key {record.decided.by}. "
                "`vcllm models rollback` takes a promotion back."
            )
        if not record.is_held:
            done = "promoted" if record.verdict.passed else "rejected"
            raise Conflict(f"The gate {done} '{candidate}' itself; only what it holds is left to people.")
        return record


def _expect(current: str | None, expected: str, record: Gated) -> None:
    """A verdict says nothing of a version that the candidate was not measured against."""
    if current != expected:
        told = f"'{current}'" if current else "no version"
        raise Conflict(
            f"'{record.candidate}' was measured against '{record.parent}', but {told} is current now. "
            "Say with `replaces` what it is to take the place of, or reject it."
        )
