"""Versions of every role and the aliases that lead to them: listed, and moved by hand where a person answers for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.auth import JobReader, KeyFirst, Promoter
from gateway.state import GatewayState, State
from vcllm.contracts.aliases import AliasHistory, AliasList, AliasSet, VersionList, VersionSummary
from vcllm.contracts.base import Name
from vcllm.contracts.gates import Gated
from vcllm.contracts.manifests import ROLES, Decision, Manifest, Role
from vcllm.contracts.problems import Conflict, NotFound
from vcllm.stores.gates import GateRecords
from vcllm.stores.models import Damaged

router = APIRouter(prefix="/v1", route_class=KeyFirst)


@router.get("/versions")
def list_versions(
    key: JobReader,
    state: State,
    role: Role | None = None,
    lineage: Name | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> VersionList:
    """Newest first. after: `role/version` of the last one of the page before."""
    manifests = [one for one in reversed(state.models.manifests(role)) if lineage in (None, one.lineage)]
    if after is not None:
        place = next((place for place, one in enumerate(manifests) if f"{one.role}/{one.name}" == after), None)
        if place is None:
            raise NotFound(f"There is no version '{after[:140]}' to go on after.", param="after")
        manifests = manifests[place + 1 :]
    aliases = {one: state.aliases.all(one) for one in ROLES}
    gates: dict[str, dict[str, Gated]] = {}
    return VersionList(
        data=[_summary(state, one, aliases, gates) for one in manifests[:limit]], has_more=len(manifests) > limit
    )


@router.get("/aliases")
def list_aliases(key: JobReader, state: State) -> AliasList:
    """What every alias of every role means now."""
    return AliasList.model_validate({"data": {role: state.aliases.all(role) for role in ROLES}})


@router.get("/aliases/{role}/history")
def alias_history(
    role: Role, key: JobReader, state: State, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> AliasHistory:
    """When `current` was moved, by whom and why, newest first."""
    return AliasHistory(role=role, data=state.aliases.history(role, limit))


@router.put("/aliases/{role}/current")
def set_current(role: Role, body: AliasSet, key: Promoter, state: State) -> AliasList:
    """Put a version into service by hand, after every file of it was read and compared with its manifest.

    A version of the Actor must have passed the gate, or a person's eye where the gate held it. One that no gate has
    seen, such as a fine-tuned one, needs `ungated`. What the gate rejected is not served: 409.
    """
    manifest = state.models.manifest(role, body.version)
    if role == "actor":
        _refuse_unpassed(state, manifest, body.ungated)
    try:
        state.models.verify(role, body.version)
    except Damaged as error:
        raise Conflict(f"Version '{body.version}' is damaged and cannot be served: {error}.", code="damaged") from error
    state.aliases.promote(role, body.version, key.id, body.note, expect=body.replaces)
    return list_aliases(key, state)


def _refuse_unpassed(state: GatewayState, manifest: Manifest, ungated: bool) -> None:
    gated = GateRecords(state.redis, manifest.lineage).of(manifest.name)
    if gated is None and not ungated:
        raise Conflict(
            f"No gate has judged '{manifest.name}'. Say `ungated` to serve it on your own word.", code="ungated"
        )
    if gated is not None and gated.is_held:
        raise Conflict(
            f"The gate holds '{manifest.name}': decide with POST /v1/models/{manifest.name}/promote or /reject.",
            code="held",
        )
    if gated is not None and not gated.is_promoted:
        raise Conflict(f"'{manifest.name}' was rejected and is not served.", code="rejected")


def _summary(
    state: GatewayState,
    manifest: Manifest,
    aliases: dict[Role, dict[str, str]],
    gates: dict[str, dict[str, Gated]],
) -> VersionSummary:
    """gates: records by lineage and version, filled as they are needed."""
    if manifest.role == "actor" and manifest.lineage not in gates:
        records = GateRecords(state.redis, manifest.lineage).all()
        gates[manifest.lineage] = {record.candidate: record for record in records}
    gated = gates.get(manifest.lineage, {}).get(manifest.name) if manifest.role == "actor" else None
    return VersionSummary(
        role=manifest.role,
        name=manifest.name,
        lineage=manifest.lineage,
        stage=manifest.stage,
        round=manifest.round,
        created=manifest.created,
        parent=manifest.parent,
        format=manifest.format,
        aliases=sorted(alias for alias, version in aliases[manifest.role].items() if version == manifest.name),
        checksum=state.models.checksum(manifest.role, manifest.name),
        gate=None if gated is None else _decision(gated),
    )


def _decision(gated: Gated) -> Decision:
    if gated.is_promoted:
        return "promote"
    return "hold" if gated.is_held else "reject"
