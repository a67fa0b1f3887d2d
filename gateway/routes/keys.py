"""API keys: made, listed, changed, rotated and revoked by administrators. A key is shown once, when it is made."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from gateway.auth import Admin, KeyFirst
from gateway.state import State
from vcllm.contracts.base import Contract
from vcllm.contracts.guard import GuardMode
from vcllm.contracts.keys import Budget, KeyChange, KeyLimits, KeyName, KeyRecord, KeyUsage, Scopes

DAY_S = 86400.0
CENTURY_S = 100 * 365 * DAY_S

router = APIRouter(prefix="/v1/keys", route_class=KeyFirst)

Lifetime = Annotated[float, Field(gt=0, le=CENTURY_S)]
Days = Annotated[int, Query(ge=1, le=366)]


class KeyCreate(Contract):
    """`POST /v1/keys`."""

    name: KeyName
    scopes: Scopes
    ttl_s: Lifetime | None = None
    """None: does not expire."""
    limits: KeyLimits = KeyLimits()
    budget: Budget | None = None
    guard: GuardMode | None = None
    """None: as the charter says."""


class KeyRotate(Contract):
    """`POST /v1/keys/{id}/rotate`; the body may be left out."""

    overlap_s: float = Field(default=DAY_S, ge=0, le=CENTURY_S)
    """How long the old key still works, unless it expires before."""
    ttl_s: Lifetime | None = None
    """Of the new key; None: as long as the old one was made for."""


class NewKey(KeyRecord):
    """The record, and the key itself: it cannot be shown again."""

    key: str


class KeyShown(KeyRecord):
    """The record, and when the key was last used."""

    last_used: float | None = None
    """Unix seconds, known to a second or two; None: never."""


class KeyList(Contract):
    """`GET /v1/keys`, oldest first."""

    data: list[KeyShown]


class KeyRevoked(Contract):
    """`DELETE /v1/keys/{id}`."""

    id: str
    revoked: bool = True


@router.post("", status_code=201)
def create_key(body: KeyCreate, admin: Admin, state: State) -> NewKey:
    key, record = state.keys.store.create(
        body.name, body.scopes, body.ttl_s, limits=body.limits, budget=body.budget, guard=body.guard
    )
    return NewKey(key=key, **record.model_dump())


@router.get("")
def list_keys(admin: Admin, state: State) -> KeyList:
    used = state.keys.store.last_used()
    records = state.keys.store.all()
    return KeyList(data=[KeyShown(**record.model_dump(), last_used=used.get(record.id)) for record in records])


@router.get("/{key_id}")
def get_key(key_id: str, admin: Admin, state: State) -> KeyShown:
    record = state.keys.store.get(key_id)
    return KeyShown(**record.model_dump(), last_used=state.keys.store.last_used().get(record.id))


@router.get("/{key_id}/usage")
def get_usage(key_id: str, admin: Admin, state: State, days: Days = 30) -> KeyUsage:
    """Of the last `days` days, in UTC; an answer is counted within a second or two of its end."""
    return state.sharing.store.usage_of(state.keys.store.get(key_id), days)


@router.patch("/{key_id}")
def change_key(key_id: str, admin: Admin, state: State, body: KeyChange) -> KeyShown:
    """Limits, budget or guard, here at once, and on every other gateway within seconds.

    What is used stays used. Keys that came from each other by rotation share limits and budget, so all of them change.
    """
    record, *others = state.keys.store.change(key_id, body)
    state.keys.forget(record.id, *(other.id for other in others))
    return KeyShown(**record.model_dump(), last_used=state.keys.store.last_used().get(record.id))


@router.post("/{key_id}/rotate", status_code=201)
def rotate_key(key_id: str, admin: Admin, state: State, body: KeyRotate | None = None) -> NewKey:
    """A successor that may do the same, under the same limits and budget; the old key lives on for the overlap."""
    wanted = body or KeyRotate()
    key, record = state.keys.store.rotate(key_id, wanted.overlap_s, wanted.ttl_s)
    state.keys.forget(key_id)
    return NewKey(key=key, **record.model_dump())


@router.delete("/{key_id}")
def revoke_key(key_id: str, admin: Admin, state: State) -> KeyRevoked:
    """Works here at once, and on every other gateway within seconds."""
    state.keys.store.revoke(key_id)
    state.keys.forget(key_id)
    return KeyRevoked(id=key_id)
