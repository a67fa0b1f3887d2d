"""Models: what is promoted, where it came from, the way back, and the word on what the gate held."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from gateway.auth import Chatter, KeyFirst, Promoter, allows
from gateway.state import GatewayState, State
from vcllm.contracts.base import Contract, Name
from vcllm.contracts.chat import ALIGNED_MODEL, ModelCard, ModelList
from vcllm.contracts.gates import Gated, GatedList, HeldDecision
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.manifests import Manifest, Role
from vcllm.contracts.problems import Conflict, NotFound
from vcllm.stores.gates import GateRecords

router = APIRouter(prefix="/v1/models", route_class=KeyFirst)


class Rollback(Contract):
    """`POST /v1/models/rollback`."""

    role: Role = "actor"


class RolledBack(Contract):
    """Which versions the aliases mean now."""

    role: Role
    current: str
    previous: str = Field(description="The version that was current before.")


@router.get("")
def list_models(key: Chatter, state: State) -> ModelList:
    """The alias `vc-llm` and the versions behind it; every version for a key that may promote."""
    return ModelList(data=_cards(state, key))


@router.get("/held")
def list_held(_: Promoter, state: State) -> GatedList:
    """Candidates that the gate left to a person, longest waiting first, each with its checks."""
    lineages = {manifest.lineage for manifest in state.models.manifests("actor")}
    held = [record for lineage in lineages for record in GateRecords(state.redis, lineage).held()]
    return GatedList(data=sorted(held, key=lambda record: record.judged))


@router.post("/{version}/promote")
def promote_held(version: Name, body: HeldDecision, key: Promoter, state: State) -> Gated:
    """Serve a candidate that the gate held; who said so is kept beside the verdict."""
    records = GateRecords(state.redis, state.models.manifest("actor", version).lineage)
    return records.decide(version, "promote", key.id, note=body.note, replaces=body.replaces)


@router.post("/{version}/reject")
def reject_held(version: Name, body: HeldDecision, key: Promoter, state: State) -> Gated:
    """Never serve a candidate that the gate held."""
    records = GateRecords(state.redis, state.models.manifest("actor", version).lineage)
    return records.decide(version, "reject", key.id, note=body.note)


@router.get("/{model}")
def get_model(model: str, key: Chatter, state: State) -> ModelCard:
    for card in _cards(state, key):
        if card.id == model:
            return card
    raise NotFound(f"There is no model '{model}' for this key.", param="model", code="model_not_found")


@router.post("/rollback")
def roll_back(body: Rollback, key: Promoter, state: State) -> RolledBack:
    """Serve the previous version again; the one that is current becomes the previous one."""
    before = state.aliases.all(body.role)
    previous = before.get("previous")
    if previous is not None and not state.models.has(body.role, previous):
        raise Conflict(f"The previous {body.role} version '{previous}' is no longer in the model store.")
    current = state.aliases.roll_back(body.role, key.id)
    return RolledBack(role=body.role, current=current, previous=before.get("current", ""))


def _cards(state: GatewayState, key: KeyRecord) -> list[ModelCard]:
    """Newest version first, after the alias."""
    aliases = state.aliases.all("actor")
    names: dict[str, list[str]] = {}
    for alias, version in sorted(aliases.items()):
        names.setdefault(version, []).append(alias)
    promoted = {aliases.get("current"), aliases.get("previous")}
    everything = allows(key, Scope.PROMOTE)
    cards = [
        _card(state, manifest, names.get(manifest.name, []))
        for manifest in reversed(state.models.manifests("actor"))
        if everything or manifest.name in promoted
    ]
    if "current" in aliases:
        created = next((card.created for card in cards if card.id == aliases["current"]), 0)
        cards.insert(0, ModelCard(id=ALIGNED_MODEL, created=created, parent=aliases["current"]))
    return cards


def _card(state: GatewayState, manifest: Manifest, aliases: list[str]) -> ModelCard:
    return ModelCard(
        id=manifest.name,
        created=int(manifest.created),
        parent=manifest.parent,
        alias=aliases,
        checksum=state.models.checksum("actor", manifest.name),
    )
