"""API keys: made, listed and revoked by administrators. A key is shown once, when it is made."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from gateway.auth import Admin
from gateway.state import State
from vcllm.contracts.base import Contract
from vcllm.contracts.keys import KeyRecord, Scope

router = APIRouter(prefix="/v1/keys")


class KeyCreate(Contract):
    """`POST /v1/keys`."""

    name: str = Field(min_length=1, max_length=100)
    scopes: list[Scope] = Field(min_length=1)
    ttl_s: float | None = Field(default=None, gt=0)
    """None: does not expire."""


class NewKey(KeyRecord):
    """The record, and the key itself: it cannot be shown again."""

    key: str


class KeyList(Contract):
    """`GET /v1/keys`, oldest first."""

    data: list[KeyRecord]


class KeyRevoked(Contract):
    """`DELETE /v1/keys/{id}`."""

    id: str
    revoked: bool = True


@router.post("", status_code=201)
def create_key(body: KeyCreate, admin: Admin, state: State) -> NewKey:
    key, record = state.keys.store.create(body.name, body.scopes, body.ttl_s)
    return NewKey(key=key, **record.model_dump())


@router.get("")
def list_keys(admin: Admin, state: State) -> KeyList:
    return KeyList(data=state.keys.store.all())


@router.delete("/{key_id}")
def revoke_key(key_id: str, admin: Admin, state: State) -> KeyRevoked:
    """Works here at once, and on every other gateway within seconds."""
    state.keys.store.revoke(key_id)
    state.keys.forget(key_id)
    return KeyRevoked(id=key_id)
