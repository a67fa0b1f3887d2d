"""The audit log as administrators read it; whether it is whole, `vcllm audit verify` says beside its Redis."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from gateway.auth import Admin, KeyFirst
from gateway.state import State
from vcllm.contracts.audit import Anchor, AuditEntry
from vcllm.contracts.base import Contract

router = APIRouter(prefix="/v1/audit", route_class=KeyFirst)


class AuditPage(Contract):
    """`GET /v1/audit`, newest first."""

    data: list[AuditEntry]
    anchor: Anchor
    """Where the log ends; noted elsewhere, it proves later that nothing up to there was changed."""
    before: int | None = Field(default=None, description="Ask with this for the next page; None: it was the last.")


@router.get("")
def list_entries(
    key: Admin,
    state: State,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
) -> AuditPage:
    """Who did what. That it was read is entered, too."""
    log = state.audit.store
    anchor = log.head()
    entries = log.recent(limit, before)
    return AuditPage(data=entries, anchor=anchor, before=entries[-1].seq if len(entries) == limit else None)
