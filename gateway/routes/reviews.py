"""Reviews: the answers that the Critic leaves to people, and the word that decides on each."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from gateway.auth import KeyFirst, Reviewer
from gateway.state import GatewayState, State
from vcllm.contracts.base import Contract, Name
from vcllm.contracts.problems import NotFound
from vcllm.contracts.reviews import ReviewDecision, Reviewed, ReviewItem
from vcllm.stores.connect import pairs_key
from vcllm.stores.reviews import ReviewDesk, ReviewStore

router = APIRouter(prefix="/v1/reviews", route_class=KeyFirst)


class ReviewList(Contract):
    """`GET /v1/reviews`, those that wait longest first."""

    data: list[ReviewItem]
    waiting: int
    """All that wait, on this page and off it."""
    after: int | None = Field(default=None, description="Ask with this for the next page; None: it was the last.")


class Review(Contract):
    """`GET` and `POST /v1/reviews/{id}`: an item, and what was decided of it."""

    item: ReviewItem
    decision: ReviewDecision | None = None
    """None: it waits."""
    by: str | None = None
    """Id of the key that decided."""
    decided: float | None = None
    """Unix seconds."""
    pair: str | None = None
    """Id of the pair that was approved, when one was."""


@router.get("")
def list_reviews(
    key: Reviewer,
    state: State,
    lineage: Name | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
) -> ReviewList:
    """What waits for a decision; lineage: none given: of all of them."""
    if lineage is not None:
        _refuse_unknown(state, lineage)
    page = ReviewDesk(state.redis).pending(lineage, limit=limit, after=after)
    return ReviewList(data=page.items, waiting=page.waiting, after=page.after)


@router.get("/{review}")
def get_review(review: str, key: Reviewer, state: State) -> Review:
    """review: its id, or at least eight hex digits of it."""
    found = ReviewDesk(state.redis).get(review)
    return Review(item=found) if isinstance(found, ReviewItem) else _decided(found)


@router.post("/{review}")
def decide_review(review: str, body: ReviewDecision, key: Reviewer, state: State) -> Review:
    """Say what the answer is. `consistent` approves it for training, once; a decision cannot be changed afterwards."""
    return _decided(ReviewDesk(state.redis).decide(review, body, key.id))


def _decided(reviewed: Reviewed) -> Review:
    return Review(
        item=reviewed.item,
        decision=reviewed.decision,
        by=reviewed.by,
        decided=reviewed.decided,
        pair=reviewed.pair,
    )


def _refuse_unknown(state: GatewayState, lineage: str) -> None:
    """A lineage of which nothing waits has an empty list; one that does not exist has none."""
    if ReviewStore(state.redis, lineage).is_known() or state.redis.exists(pairs_key(lineage)):
        return
    if all(manifest.lineage != lineage for manifest in state.models.manifests("actor")):
        raise NotFound(
            f"There is no lineage '{lineage}'. Leave `lineage` out to see what waits in all of them.", param="lineage"
        )
