"""What is known of the adversarial rounds of every lineage: whose job plays them, a row for each, the archive.

The trainer writes it while it plays, and asks here whether it was told to stop. Does not know how a round is played,
nor what state the job is in, only whether somebody holds its lease.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis import Redis

from vcllm.contracts.archive import ArchiveState
from vcllm.contracts.campaigns import CampaignRound
from vcllm.contracts.problems import Conflict
from vcllm.stores.connect import (
    CAMPAIGNS_BY_TIME,
    campaign_archive_key,
    campaign_begin_key,
    campaign_key,
    campaign_rounds_key,
    events_key,
    lease_key,
    lineage_key,
)

READ_AT_ONCE = 500
"""Events fetched in one go where the newest of a kind is wanted."""
BEGIN_S = 60
"""How long whoever begins a campaign keeps others away at most, should it die over it; it takes milliseconds."""


@dataclass(frozen=True)
class CampaignHead:
    """A campaign without its rounds."""

    lineage: str
    job: str
    """The job that began it last."""
    recipe: str
    seed: int
    created: float
    """When that job began it, in Unix seconds."""
    stopping: bool
    """That job was told to stop after the round in progress."""


class CampaignStore:
    """The campaigns of all lineages; a campaign has the name of its lineage."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    @contextmanager
    def beginning(self, lineage: str, job: str) -> Iterator[None]:
        """Nobody else is in this block for that lineage; Conflict when somebody is. The same job may come again.

        Inside, whoever wants to begin a campaign looks whether it may, and does.
        """
        key = campaign_begin_key(lineage)
        if not self.redis.set(key, job, nx=True, ex=BEGIN_S) and self.redis.get(key) != job:
            raise Conflict(f"Campaign '{lineage}' is being begun by another request.", code="campaign_busy")
        try:
            yield
        finally:
            self.redis.eval(_LEAVE, 1, key, job)

    def claim(self, lineage: str, job: str) -> str:
        """The job that works on a lineage from now on: this one, unless the one that did holds its lease."""
        return str(self.redis.eval(_CLAIM, 1, lineage_key(lineage), job, lease_key("")))

    def begin(self, lineage: str, job: str, recipe: str, seed: int) -> None:
        """Make a campaign known, or hand it to another job; the rounds that are there stay.

        The same job may say it again, as it does when it was interrupted: its place in the list and a word to stop
        stay. Another job comes first in the list, and was not told anything yet.
        """
        key = campaign_key(lineage)
        fields: dict[str, Any] = {"job": job, "recipe": recipe, "seed": seed}
        is_new = self.redis.hget(key, "job") != job
        with self.redis.pipeline() as pipe:
            if is_new:
                fields["created"] = round(time.time(), 3)
                pipe.hdel(key, "stop")
                pipe.zadd(CAMPAIGNS_BY_TIME, {lineage: fields["created"]})
            pipe.hset(key, mapping=fields)
            pipe.execute()

    def get(self, lineage: str) -> CampaignHead | None:
        """None: there is no such campaign."""
        return _head(lineage, self.redis.hgetall(campaign_key(lineage)))

    def recent(self, limit: int = 20, before: float | None = None) -> list[CampaignHead]:
        """Newest first. before: only those created before this time."""
        top = "+inf" if before is None else f"({before}"
        lineages = self.redis.zrevrangebyscore(CAMPAIGNS_BY_TIME, top, "-inf", start=0, num=limit)
        heads = (self.get(lineage) for lineage in lineages)
        return [head for head in heads if head is not None]

    def put_round(self, lineage: str, row: CampaignRound) -> None:
        """Write a round's row; one that is there is replaced, so that a repeated round changes nothing."""
        self.redis.hset(campaign_rounds_key(lineage), str(row.number), row.model_dump_json())

    def rounds(self, lineage: str) -> list[CampaignRound]:
        """In their order; empty before the first is done."""
        rows = map(CampaignRound.model_validate_json, self.redis.hvals(campaign_rounds_key(lineage)))
        return sorted(rows, key=lambda row: row.number)

    def put_archive(self, state: ArchiveState) -> None:
        """The lineage's archive as it is now, in place of what it was."""
        self.redis.set(campaign_archive_key(state.lineage), state.model_dump_json())

    def archive(self, lineage: str) -> ArchiveState | None:
        """As it was put last; None before the first round is done."""
        kept = self.redis.get(campaign_archive_key(lineage))
        return None if kept is None else ArchiveState.model_validate_json(kept)

    def ask_stop(self, lineage: str) -> None:
        """Let the round in progress be the last; asking again changes nothing."""
        self.redis.hset(campaign_key(lineage), "stop", 1)

    def stop_asked(self, lineage: str) -> bool:
        """Whether no further round is to be begun."""
        return bool(self.redis.hexists(campaign_key(lineage), "stop"))


def stage_of(redis: Redis, job: str) -> str | None:
    """The stage that a pipeline began last by its events; None: it is over, or none was begun.

    Says nothing of whether anybody works on the job: one that was interrupted has begun its stage, too.
    """
    reader: Any = redis
    end = "+"
    while rows := reader.xrevrange(events_key(job), end, "-", count=READ_AT_ONCE):
        for _, fields in rows:
            if fields["type"] == "stage":
                data = json.loads(fields["data"])
                return str(data["stage"]) if data["status"] == "started" else None
        end = f"({rows[-1][0]}"
    return None


def _head(lineage: str, fields: Mapping[str, str]) -> CampaignHead | None:
    if "job" not in fields:
        return None
    return CampaignHead(
        lineage=lineage,
        job=fields["job"],
        recipe=fields["recipe"],
        seed=int(fields["seed"]),
        created=float(fields["created"]),
        stopping="stop" in fields,
    )


_LEAVE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and redis.call('EXISTS', ARGV[2] .. holder) == 1 then return holder end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
