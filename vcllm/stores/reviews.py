"""Answers the Critic is not sure of: put to people once, decided once, kept for good as labels.

`ReviewStore` is the trainer's side, of one lineage; `ReviewDesk` the side of the people who decide. A decision and the
pair that it approves are written in one step, so that no kill leaves one without the other. Does not know which answers
are doubtful, nor how the Critic learns from what was decided.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis import Redis

from vcllm.contracts.critiques import Outcome
from vcllm.contracts.lineage import PREFIX_LENGTH
from vcllm.contracts.pairs import Pair
from vcllm.contracts.problems import BadRequest, Conflict, NotFound
from vcllm.contracts.reviews import ReviewDecision, Reviewed, ReviewItem
from vcllm.stores.connect import (
    REVIEW_IDS,
    REVIEWS,
    REVIEWS_DECIDED,
    REVIEWS_PENDING,
    pairs_key,
    pairs_seen_key,
    reviews_decided_key,
    reviews_pending_key,
)

READ_AT_ONCE = 500
"""Records fetched in one go where all are wanted."""


class Page(NamedTuple):
    """Some of the items that wait, oldest first."""

    items: list[ReviewItem]
    waiting: int
    """All that wait, on this page and off it."""
    after: int | None
    """Ask with this for the next page; None: it was the last."""


class ReviewStore:
    """The items of one lineage, and what was decided of them."""

    def __init__(self, redis: Redis, lineage: str) -> None:
        self.redis: Any = redis
        self.lineage = lineage

    def add(self, item: ReviewItem) -> bool:
        """Put an item to people; False when this very answer was put to them before, decided since or not."""
        assert item.lineage == self.lineage, "every lineage has its own reviews"
        keys = (REVIEWS, REVIEW_IDS, reviews_pending_key(self.lineage), REVIEWS_PENDING)
        return bool(self.redis.eval(_ADD, len(keys), *keys, item.id, item.model_dump_json()))

    def count(self) -> int:
        """Items that wait for a decision."""
        return int(self.redis.zcard(reviews_pending_key(self.lineage)))

    def num_decided(self, since: int = 0) -> int:
        """Decisions so far; since: only those after the first so many."""
        return max(0, int(self.redis.llen(reviews_decided_key(self.lineage))) - since)

    def decided(self, start: int = 0, stop: int | None = None) -> list[Reviewed]:
        """Decisions in the order in which they were made; positions as in a slice, none of them negative.

        Decisions are only ever appended, so the first so many are the same whenever they are read.
        """
        if stop is not None and stop <= start:
            return []
        ids = self.redis.lrange(reviews_decided_key(self.lineage), start, -1 if stop is None else stop - 1)
        return [Reviewed.model_validate_json(raw) for raw in _read(self.redis, REVIEWS_DECIDED, ids)]

    def is_known(self) -> bool:
        """Whether anything of this lineage was ever put to people."""
        keys = (reviews_pending_key(self.lineage), reviews_decided_key(self.lineage))
        return bool(self.redis.exists(*keys))


class ReviewDesk:
    """The items of all lineages, as people see and decide them."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    def pending(self, lineage: str | None = None, *, limit: int = 20, after: int = 0) -> Page:
        """What waits, oldest first; lineage: None: of all of them. after: of an earlier page, which is read on from
        there whatever was decided since."""
        key = REVIEWS_PENDING if lineage is None else reviews_pending_key(lineage)
        rows = self.redis.zrangebyscore(key, f"({after}", "+inf", start=0, num=limit, withscores=True)
        items = [ReviewItem.model_validate_json(raw) for raw in _read(self.redis, REVIEWS, [id for id, _ in rows])]
        return Page(items, int(self.redis.zcard(key)), int(rows[-1][1]) if len(rows) == limit else None)

    def get(self, name: str) -> ReviewItem | Reviewed:
        """The item while it waits, afterwards what was decided. name: its id, or the first hex digits of it."""
        id = self._find(name)
        decided = self.redis.hget(REVIEWS_DECIDED, id)
        if decided is not None:
            return Reviewed.model_validate_json(decided)
        return ReviewItem.model_validate_json(self.redis.hget(REVIEWS, id))

    def decide(self, name: str, decision: ReviewDecision, by: str) -> Reviewed:
        """Enter a person's word; an answer that is found consistent is queued for training in the same step.

        The first word stands: the same outcome again gives back its record, note and all; Conflict for another one.
        by: id of the key. name: as for `get`. Let in above the high-water mark of pairs, too: people approve few.
        """
        found = self.get(name)
        item = found if isinstance(found, ReviewItem) else found.item
        pair = approved_pair(item) if decision.outcome is Outcome.CONSISTENT else None
        record = Reviewed(
            item=item,
            decision=decision,
            by=by,
            decided=round(time.time(), 3),
            pair=None if pair is None else pair.id,
        )
        queued = () if pair is None else (pair.id, pair.model_dump_json())
        keys = (
            REVIEWS_DECIDED,
            reviews_decided_key(item.lineage),
            reviews_pending_key(item.lineage),
            REVIEWS_PENDING,
            pairs_seen_key(item.lineage),
            pairs_key(item.lineage),
        )
        kept = self.redis.eval(_DECIDE, len(keys), *keys, item.id, record.model_dump_json(), *queued)
        first = Reviewed.model_validate_json(kept)
        if first.decision.outcome is not decision.outcome:
            raise Conflict(
                f"'{item.id[:12]}' was decided before: {first.decision.outcome}, by key {first.by}. A decision stays "
                "as it is, since a version may have learned from it. Go on with the next one.",
                code="already_decided",
            )
        return first

    def _find(self, name: str) -> str:
        """The whole id; BadRequest for what names none or several, NotFound for what names nothing there is."""
        if not re.fullmatch(rf"[0-9a-f]{{{PREFIX_LENGTH},64}}", name):
            raise BadRequest(
                f"'{name[:80]}' is no id of a review. Give the whole id, or at least its first {PREFIX_LENGTH} hex "
                "digits.",
                param="id",
            )
        # An index of ids alone: no record is read to find one. 'g' comes after every hex digit.
        found = self.redis.zrangebylex(REVIEW_IDS, f"[{name}", f"({name}g", start=0, num=2)
        if not found:
            raise NotFound(f"There is no review '{name}'. `GET /v1/reviews` lists those that wait.")
        if len(found) > 1:
            raise BadRequest(f"More than one review begins with '{name}': give more of the id.", param="id")
        return str(found[0])


def approved_pair(item: ReviewItem) -> Pair:
    """The pair of an item that a person found consistent; the same one whoever decides, and when.

    The Critic's view of both answers stays as it was. Without a rejected answer the chosen one is approved on its own.
    """
    return Pair(
        kind=item.goal.kind,
        cell=item.goal.cell,
        card=item.goal.card,
        goal=item.goal.goal,
        source="human",
        history=item.history,
        query=item.query,
        chosen=item.answer,
        rejected=item.rejected,
        margin=_margin(item),
        chosen_critique=item.critique,
        rejected_critique=item.rejected_critique,
        provenance=item.provenance,
    )


def _margin(item: ReviewItem) -> float | None:
    """None where there is nothing to reject, or the Critic did not score it lower."""
    rejected = None if item.rejected_critique is None else item.rejected_critique.score
    if item.rejected is None or item.critique.score is None or rejected is None:
        return None
    margin = item.critique.score - rejected
    return margin if margin > 0 else None


def _read(redis: Any, key: str, ids: Sequence[str]) -> Iterator[str]:
    """The records of these ids in a hash, in order."""
    for begin in range(0, len(ids), READ_AT_ONCE):
        for raw in redis.hmget(key, ids[begin : begin + READ_AT_ONCE]):
            assert raw is not None, "a record is written in the same step as its id"
            yield raw


_ADD = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], 0, ARGV[1])
local place = redis.call('ZCARD', KEYS[2])
redis.call('ZADD', KEYS[3], place, ARGV[1])
redis.call('ZADD', KEYS[4], place, ARGV[1])
return 1
"""
# The last lines queue a pair as `PairStream.add` does.
_DECIDE = """
local first = redis.call('HGET', KEYS[1], ARGV[1])
if first then return first end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if ARGV[3] and redis.call('SADD', KEYS[5], ARGV[3]) == 1 then
  redis.call('XADD', KEYS[6], '*', 'pair', ARGV[4])
end
return ARGV[2]
"""
