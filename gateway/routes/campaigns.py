"""Campaigns: the adversarial rounds of a lineage, started, watched and stopped by its name.

A campaign is played by a job, and what becomes of it is done to that job; see `jobs`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from gateway.auth import JobReader, JobWriter, KeyFirst
from gateway.once import IdempotencyKey, once
from gateway.routes import jobs
from gateway.routes.jobs import JobPlan
from gateway.state import GatewayState, State
from vcllm.charter import CharterError, load_charter
from vcllm.charter.load import charter_folder
from vcllm.contracts.archive import ArchiveState
from vcllm.contracts.base import Name
from vcllm.contracts.campaigns import Campaign, CampaignCreate, CampaignList
from vcllm.contracts.jobs import FINISHED, JobRecord, JobRequest, JobState
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest, Conflict, NotFound
from vcllm.contracts.recipes import Recipe
from vcllm.recipes import lineage_name, load_recipe, stage_names, used_part
from vcllm.stores.campaigns import CampaignHead, CampaignStore, stage_of
from vcllm.stores.gates import GateRecords
from vcllm.stores.idempotency import Claim
from vcllm.stores.jobs import HELD
from vcllm.stores.reviews import ReviewStore

router = APIRouter(prefix="/v1/campaigns", route_class=KeyFirst)

OVER = frozenset({JobState.SUCCEEDED, JobState.CANCELLED})
"""A failed job is not among them: it can be resumed."""


class CampaignPlan(JobPlan):
    """The reply to `validate_only`: what would run, and under which name."""

    lineage: Name


@router.post(
    "",
    status_code=201,
    response_model=Campaign | CampaignPlan,
    responses={200: {"model": Campaign | CampaignPlan, "description": jobs.NOTHING_NEW}},
)
def create_campaign(
    body: CampaignCreate,
    key: JobWriter,
    state: State,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Campaign | CampaignPlan:
    """Check, store, queue. The same Idempotency-Key with the same request gives back the first campaign.

    422 for the key with another request, 409 while the first one is being worked on. The lineage's name is settled here
    and goes into the job, so that the campaign has it from the start.
    """
    recipe = load_recipe(state.settings.recipes, body.recipe)
    seed = recipe.seed if body.seed is None else body.seed
    lineage = body.lineage or lineage_name(recipe, seed, _charter_hash(state, recipe))
    if body.validate_only:
        _refuse_busy(state, lineage)
        response.status_code = 200
        return CampaignPlan(recipe=body.recipe, lineage=lineage, stages=stage_names(recipe))
    request = JobRequest(recipe=body.recipe, lineage=lineage, seed=seed)
    with once(state, key.id, idempotency_key, "campaigns", body) as claim:
        record, new = _begun(state, claim, request)
        jobs.start_job(state, claim, record, new, response)
    return get_campaign(record.request["lineage"], key, state)


@router.get("")
def list_campaigns(
    key: JobReader,
    state: State,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
) -> CampaignList:
    """before: only those created before this time, such as the `created` of the last one of a list."""
    promoted = _promoted(state)
    heads = CampaignStore(state.redis).recent(limit, before)
    return CampaignList(data=[_campaign(state, head, promoted) for head in heads])


@router.get("/{lineage}")
def get_campaign(lineage: Name, key: JobReader, state: State) -> Campaign:
    """What it is, where it stands, and a row for every round that is done."""
    campaign = _campaign(state, _head(state, lineage), _promoted(state))
    return campaign.model_copy(update={"rounds": CampaignStore(state.redis).rounds(lineage)})


@router.get("/{lineage}/archive")
def get_archive(lineage: Name, key: JobReader, state: State) -> ArchiveState:
    """The whole archive after the last round that is done; texts of attacks are in it."""
    _head(state, lineage)
    archive = CampaignStore(state.redis).archive(lineage)
    if archive is None:
        raise NotFound(f"Campaign '{lineage}' has no archive yet: it is there once the first round is done.")
    return archive


@router.post("/{lineage}/pause")
def pause_campaign(lineage: Name, key: JobWriter, state: State) -> Campaign:
    """It stops at a checkpoint within seconds, at once while it waits; a finished one stays as it is."""
    jobs.pause_job(_head(state, lineage).job, key, state)
    return get_campaign(lineage, key, state)


@router.post("/{lineage}/resume")
def resume_campaign(lineage: Name, key: JobWriter, state: State) -> Campaign:
    """Queue a paused or failed campaign again; it goes on where it was. A word to stop stays."""
    jobs.resume_job(_head(state, lineage).job, key, state)
    return get_campaign(lineage, key, state)


@router.post("/{lineage}/stop")
def stop_campaign(lineage: Name, key: JobWriter, state: State) -> Campaign:
    """Let the round in progress be the last; what comes after the rounds, the report above all, still runs.

    Before the first round it plays none. A paused or failed campaign does nothing until it is resumed, and then ends in
    the same way. Conflict for one that is over or being aborted.
    """
    record = state.jobs.get(_head(state, lineage).job)
    if record.state in OVER or record.state is JobState.CANCELLING:
        raise Conflict(f"Campaign '{lineage}' is {record.state}: there is no further round to be left out.")
    CampaignStore(state.redis).ask_stop(lineage)
    return get_campaign(lineage, key, state)


@router.post("/{lineage}/abort")
def abort_campaign(lineage: Name, key: JobWriter, state: State) -> Campaign:
    """End it now, without a report; versions and rounds that are done stay. A finished one stays as it is."""
    jobs.cancel_job(_head(state, lineage).job, key, state)
    return get_campaign(lineage, key, state)


def _begun(state: GatewayState, claim: Claim, request: JobRequest) -> tuple[JobRecord, bool]:
    """The claimed job, and whether it is new; Conflict while another one plays its lineage, or is about to."""
    if claim.is_done:
        return state.jobs.get(claim.job), False
    assert request.lineage is not None and request.seed is not None, "both were settled"
    campaigns = CampaignStore(state.redis)
    with campaigns.beginning(request.lineage, claim.job):
        _refuse_busy(state, request.lineage, claim.job)
        record, new = jobs.store_job(state, claim, request, queue="rollouts")
        campaigns.begin(request.lineage, record.id, request.recipe, request.seed)
    return record, new


def _head(state: GatewayState, lineage: str) -> CampaignHead:
    head = CampaignStore(state.redis).get(lineage)
    if head is None:
        raise NotFound(f"There is no campaign '{lineage}'. `GET /v1/campaigns` lists those that exist.")
    return head


def _campaign(state: GatewayState, head: CampaignHead, promoted: Manifest | None) -> Campaign:
    """Without its rounds."""
    record, lineage = state.jobs.get(head.job), head.lineage
    return Campaign(
        lineage=lineage,
        recipe=head.recipe,
        seed=head.seed,
        job=head.job,
        state=record.state,
        stopping=head.stopping and record.state not in OVER,
        stage=stage_of(state.redis, head.job) if record.state in HELD else None,
        created=head.created,
        error=record.error,
        served=promoted.name if promoted is not None and promoted.lineage == lineage else None,
        held=[gated.candidate for gated in GateRecords(state.redis, lineage).held()],
        reviews=ReviewStore(state.redis, lineage).count(),
    )


def _promoted(state: GatewayState) -> Manifest | None:
    """The version of the Actor that is promoted now, of whichever lineage."""
    version = state.aliases.get("actor")
    return state.models.manifest("actor", version) if version and state.models.has("actor", version) else None


def _charter_hash(state: GatewayState, recipe: Recipe) -> str:
    folder = charter_folder(recipe.charter, state.settings.charters)
    try:
        whole = load_charter(folder)
    except CharterError as error:
        fault = str(error).replace(str(folder), recipe.charter)  # where it lies is nobody's business who asks over HTTP
        raise BadRequest(f"Charter '{recipe.charter}' cannot be used: {fault}", param="recipe") from error
    return used_part(recipe, whole).hash


def _refuse_busy(state: GatewayState, lineage: str, job: str | None = None) -> None:
    """Two jobs cannot play the rounds of one lineage. job: that may have begun it before."""
    head = CampaignStore(state.redis).get(lineage)
    if head is None or head.job == job or (record := state.jobs.get(head.job)).state in FINISHED:
        return
    raise Conflict(
        f"Campaign '{lineage}' is {record.state} already, played by {head.job}. Watch it, abort it first, or name "
        "another `lineage` or `seed`.",
        code="campaign_busy",
    )
