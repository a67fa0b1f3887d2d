"""What every stage of one pipeline works with: the recipe, the charter, the stores, the clients, the names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from redis import Redis

from services.trainer.datasets import Datasets
from services.trainer.hold import Hold
from services.trainer.settings import TrainerSettings
from vcllm.charter import LoadedCharter, load_charter
from vcllm.charter.load import charter_folder
from vcllm.contracts.audit import Deed, Outcome
from vcllm.contracts.critiques import EmbeddingRequest
from vcllm.contracts.jobs import JobRecord, JobRequest
from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import BadRequest, Conflict
from vcllm.contracts.recipes import Recipe
from vcllm.recipes import lineage_name, load_recipe, used_part
from vcllm.settings import Settings
from vcllm.starter.world import World
from vcllm.stores.aliases import AliasStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.campaigns import CampaignStore
from vcllm.stores.connect import job_lineage_key
from vcllm.stores.events import EventLog
from vcllm.stores.gates import GateRecords
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore, write_atomic
from vcllm.stores.pairs import PairStream
from vcllm.stores.reviews import ReviewStore
from vcllm.web.clients import ActorClient, AttackerClient, CriticClient
from vcllm.web.tracing import traceparent

NO_EMBEDDINGS = "not_supported_by_upstream"
"""The problem's code of a Critic that cannot say where texts lie."""


def _settled(redis: Any, job: str, lineage: str) -> str:
    """The lineage a job began with: a recipe or charter that is edited meanwhile must not make it begin anew."""
    redis.set(job_lineage_key(job), lineage, nx=True)
    return str(redis.get(job_lineage_key(job)))


@dataclass
class Context:
    """One pipeline's surroundings."""

    record: JobRecord
    hold: Hold
    redis: Redis
    settings: Settings
    trainer: TrainerSettings
    recipe: Recipe
    charter: LoadedCharter
    seed: int
    lineage: str

    @classmethod
    def open(cls, record: JobRecord, hold: Hold, redis: Redis, settings: Settings, trainer: TrainerSettings) -> Context:
        """Read recipe and charter; BadRequest or CharterError says what is wrong with them."""
        request = JobRequest.model_validate(record.request)
        recipe = load_recipe(settings.recipes, request.recipe)
        whole = load_charter(charter_folder(recipe.charter, settings.charters))
        charter = used_part(recipe, whole)
        seed = recipe.seed if request.seed is None else request.seed
        lineage = request.lineage or _settled(redis, record.id, lineage_name(recipe, seed, charter.hash))
        context = cls(record, hold, redis, settings, trainer, recipe, charter, seed, lineage)
        hold.hang_up = context.close
        return context

    @cached_property
    def folder(self) -> Path:
        """What the lineage leaves behind besides versions: answers, rounds, stage results."""
        return self.settings.home / "lineages" / self.lineage

    @cached_property
    def jobs(self) -> JobStore:
        return JobStore(self.redis, self.settings.lease_s, traceparent=traceparent)

    @cached_property
    def store(self) -> ModelStore:
        return ModelStore(self.settings.models)

    @cached_property
    def aliases(self) -> AliasStore:
        return AliasStore(self.redis)

    def promote(self, role: Role, version: str) -> None:
        """Move `current` where it is elsewhere, as long as the lease is ours; not done unless the audit log has it."""
        self.hold.confirm()
        if self.aliases.get(role) == version:
            return
        with AuditLog(self.redis).deed(self.who, f"promote {role}", version):
            self.aliases.promote(role, version)

    def enter(self, action: str, target: str) -> None:
        """Something that was decided here, into the audit log."""
        AuditLog(self.redis).append(Deed(actor=self.who, action=action, target=target, outcome=Outcome.DONE))

    @property
    def who(self) -> str:
        """Who does what this pipeline does, as the audit log says it."""
        return f"trainer:{self.record.id}"

    @cached_property
    def pairs(self) -> PairStream:
        return PairStream(self.redis, self.lineage)

    @cached_property
    def gates(self) -> GateRecords:
        return GateRecords(self.redis, self.lineage)

    @cached_property
    def reviews(self) -> ReviewStore:
        return ReviewStore(self.redis, self.lineage)

    @cached_property
    def campaigns(self) -> CampaignStore:
        return CampaignStore(self.redis)

    @cached_property
    def datasets(self) -> Datasets:
        return Datasets(self.settings.home / "datasets")

    @cached_property
    def actor(self) -> ActorClient:
        return ActorClient(
            self.settings.urls("actor"), self.settings.internal_token, patience_s=self.trainer.patience_s
        )

    @cached_property
    def attacker(self) -> AttackerClient:
        urls = self.settings.urls("attacker")
        return AttackerClient(urls, self.settings.internal_token, patience_s=self.trainer.patience_s)

    @cached_property
    def critic(self) -> CriticClient:
        return CriticClient(
            self.settings.urls("critic"), self.settings.internal_token, patience_s=self.trainer.patience_s
        )

    def claim_lineage(self) -> None:
        """One pipeline at a time works on a lineage; Conflict names the job that does."""
        holder = self.campaigns.claim(self.lineage, self.record.id)
        if holder != self.record.id:
            raise Conflict(f"Lineage '{self.lineage}' is being worked on by {holder}. Wait for it, or cancel it.")

    def version(self, stage: str) -> str:
        """The name of the version a stage makes in this lineage."""
        return f"{self.lineage}-{stage}"

    def embed(self, texts: list[str], trace: str) -> list[list[float]]:
        """Where texts lie, by the lineage's first Critic, so that all rounds share one space; empty vectors where its
        back end has no vectors to give."""
        if not texts:
            return []
        request = EmbeddingRequest(texts=texts, model=self.version("critic"))
        try:
            return self.critic.embeddings(request, trace=trace).embeddings
        except BadRequest as refused:
            if refused.code != NO_EMBEDDINGS:
                raise
            return [[] for _ in texts]

    def world(self, purpose: str) -> World:
        """The starter world with its own random stream for each purpose."""
        return World(self.charter, f"{self.seed}-{purpose}", self.recipe.world)

    def tell(self, type_: str, **data: Any) -> None:
        """An event of this pipeline."""
        EventLog(self.redis).append(self.record.id, type_, **data)

    def recall(self, name: str) -> Any:
        """What `keep` wrote under this name, or None."""
        file = self.folder / name
        return json.loads(file.read_text()) if file.is_file() else None

    def keep(self, name: str, value: Any) -> None:
        """Write a JSON value atomically; a resumed pipeline finds it."""
        self.hold.confirm()
        write_atomic(self.folder / name, json.dumps(value, ensure_ascii=False).encode())

    def close(self) -> None:
        """End the calls to role servers, those that wait in other threads too; may be repeated."""
        for client in ("actor", "attacker", "critic"):
            if client in self.__dict__:
                self.__dict__[client].close()
