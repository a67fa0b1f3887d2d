"""Lineage both ways: reply -> version -> pairs -> critiques -> attacker, and pair -> versions."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.auth import JobReader, KeyFirst
from gateway.state import State
from vcllm.contracts.base import Name
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.contracts.lineage import PairTrace, VersionTrace
from vcllm.contracts.manifests import Role
from vcllm.stores.tracing import trace_pair, trace_version

router = APIRouter(prefix="/v1/lineage", route_class=KeyFirst)


@router.get("/versions/{role}/{version}")
def version_lineage(role: Role, version: str, key: JobReader, state: State) -> VersionTrace:
    """What a version was made of. version: its name, a reply's `system_fingerprint`, or `vc-llm`: the current one."""
    if role == "actor" and version == ALIGNED_MODEL:
        version = state.aliases.get("actor") or version
    return trace_version(state.redis, state.models, role, version)


@router.get("/pairs/{lineage}/{pair}")
def pair_lineage(lineage: Name, pair: str, key: JobReader, state: State) -> PairTrace:
    """Who made a pair and which versions learned from it. pair: its id, or at least eight hex digits of it."""
    return trace_pair(state.redis, state.models, lineage, pair)
