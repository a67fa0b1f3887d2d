"""The product's whole pipeline in one process: the same code but for two edges, so that many runs fit on two cores.

Role servers are called as objects instead of over HTTP, and a training run is called instead of started. Redis, jobs,
leases, pairs, ledger, model store and the pipeline itself are the real ones. Knows nothing of what is compared.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from services.attacker.app import prompt, to_attack
from services.critic.classifier import Classifier
from services.trainer.datasets import Datasets
from services.trainer.hold import Hold
from services.trainer.pipeline import Pipeline
from services.trainer.runs import make_ready
from services.trainer.settings import TrainerSettings
from services.trainer.training import clean_up, commit, prepare
from vcllm.contracts.attacks import AttackReply, AttackRequest
from vcllm.contracts.chat import ChatBatchReply, ChatMessage, Sampling
from vcllm.contracts.critiques import (
    ComparisonReply,
    ComparisonRequest,
    CritiqueReply,
    CritiqueRequest,
    EmbeddingReply,
    EmbeddingRequest,
)
from vcllm.contracts.jobs import JobRequest, JobState
from vcllm.contracts.manifests import Role
from vcllm.contracts.recipes import StageOrder
from vcllm.contracts.runs import TOKEN_VARIABLE
from vcllm.engine.load import Loader
from vcllm.engine.local import LocalEngine
from vcllm.engine.prefill import Limits
from vcllm.launch.embedded_redis import EmbeddedRedis
from vcllm.launch.ports import free_port
from vcllm.settings import Settings
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream
from vcllm.training.run import run_order

OPEN_AT_MOST = 4
"""Loaded versions of a role."""


class LocalRoles:
    """Attacker, Actor and Critic by the versions in a store; stands in for all three clients."""

    def __init__(self, store: ModelStore, limits: Limits) -> None:
        self.store, self.limits = store, limits
        self.loaders = {kind: Loader(kind) for kind in ("causal", "classifier")}
        self.opened: OrderedDict[tuple[Role, str], Any] = OrderedDict()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Time spent in each role."""

    def chat_batch(
        self,
        model: str,
        conversations: Sequence[list[ChatMessage]],
        sampling: Sampling,
        n: int = 1,
        *,
        trace: str | None = None,
    ) -> ChatBatchReply:
        with self._timed("actor"):
            answers = asyncio.run(self._open("actor", model).complete(conversations, sampling, n))
        return ChatBatchReply(model=model, completions=[each.completions for each in answers])

    def attacks(self, request: AttackRequest, *, trace: str | None = None) -> AttackReply:
        assert request.model is not None, "a round names the version it asks"
        histories = request.histories or [[] for _ in request.goals]
        prompts = [prompt(goal, history) for goal, history in zip(request.goals, histories, strict=True)]
        sampling = Sampling(temperature=request.temperature, max_tokens=request.max_tokens, seed=request.seed)
        conversations = [[ChatMessage(role="user", content=text)] for text in prompts]
        with self._timed("attacker"):
            answers = asyncio.run(self._open("attacker", request.model).complete(conversations, sampling))
        attacks = [
            to_attack(goal, each.completions[0], history)
            for goal, history, each in zip(request.goals, histories, answers, strict=True)
        ]
        return AttackReply(attacks=attacks, attacker_version=request.model)

    def critiques(self, request: CritiqueRequest, *, trace: str | None = None) -> CritiqueReply:
        assert request.model is not None, "a round names the version it asks"
        with self._timed("critic"):
            critiques = asyncio.run(self._open("critic", request.model).critique(request.items))
        return CritiqueReply(critiques=critiques, critic_version=request.model)

    def comparisons(self, request: ComparisonRequest, *, trace: str | None = None) -> ComparisonReply:
        assert request.model is not None, "a round names the version it asks"
        with self._timed("critic"):
            comparisons = asyncio.run(self._open("critic", request.model).compare(request.items))
        return ComparisonReply(comparisons=comparisons, critic_version=request.model)

    def embeddings(self, request: EmbeddingRequest, *, trace: str | None = None) -> EmbeddingReply:
        assert request.model is not None, "a round names the version it asks"
        with self._timed("critic"):
            embeddings = asyncio.run(self._open("critic", request.model).embed(request.texts))
        return EmbeddingReply(embeddings=embeddings, critic_version=request.model)

    def close(self) -> None:
        while self.opened:
            self.opened.popitem()[1].close()

    def _open(self, role: Role, version: str) -> Any:
        if (role, version) not in self.opened:
            kept_as: Role = role if self.store.has(role, version) else "actor"  # one set of weights may play both
            manifest = self.store.manifest(kept_as, version)
            base = self._base(manifest.base)
            loader = self.loaders["classifier" if role == "critic" else "causal"]
            loaded = loader.load(self.store.path(kept_as, version), base=base)
            made = Classifier(loaded) if role == "critic" else LocalEngine(loaded, self.limits, own=True)
            self.opened[role, version] = made
        self.opened.move_to_end((role, version))
        while len(self.opened) > OPEN_AT_MOST:
            self.opened.popitem(last=False)[1].close()
        return self.opened[role, version]

    def _base(self, name: str | None) -> Path | str | None:
        if name is None:
            return None
        role, _, version = name.partition("/")
        return self.store.path(role, version) if self.store.has(role, version) else name

    @contextmanager
    def _timed(self, role: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[role] += time.monotonic() - started


class LocalSystem:
    """One home with a Redis of its own; `run` runs recipes to their end, where it was cut off before it goes on."""

    def __init__(self, home: Path, recipes: Path, *, threads: int = 1) -> None:
        self.threads = threads
        self.redis_server = EmbeddedRedis(home / "redis", free_port(), SecretStr(secrets.token_hex(8)))
        self.settings = Settings(home=home, recipes=recipes, redis_url=self.redis_server.url)
        self.trainer = TrainerSettings(poll_s=0.01)
        self.said: Callable[[str], None] = print

    @contextmanager
    def opened(self) -> Iterator[Redis]:
        self.redis_server.configure()
        process = subprocess.Popen(self.redis_server.command, stdout=subprocess.DEVNULL)
        redis = Redis.from_url(self.settings.redis_url, decode_responses=True)
        try:
            while True:
                with suppress(RedisError):
                    redis.ping()
                    break
                time.sleep(0.05)
            yield redis
        finally:
            redis.close()
            process.terminate()
            process.wait()

    def run(
        self,
        recipe: str,
        lineage: str,
        seed: int,
        change: Callable[[Pipeline], None] = lambda pipeline: None,
        stages: Sequence[str] | None = None,
    ) -> LocalRoles:
        """Run the recipe, or only some of its stages; `change` may replace parts of the pipeline beforehand."""
        torch.set_num_threads(self.threads)
        with self.opened() as redis:
            jobs = JobStore(redis, 3600)
            roles = LocalRoles(ModelStore(self.settings.models), Limits(max_rows=128))
            for stage in stages or [None]:
                request = JobRequest(recipe=recipe, lineage=lineage, seed=seed, stage=stage)
                record, _ = jobs.create(request, queue="rollouts")
                taken = jobs.take(record.id)
                assert taken is not None, "nobody else works on this Redis"
                with Hold(jobs, taken) as hold:
                    pipeline = Pipeline(
                        taken, hold, redis, self.settings, self.trainer, lambda job, _: self._train(redis, job)
                    )
                    pipeline.context.__dict__.update(actor=roles, attacker=roles, critic=roles)
                    change(pipeline)
                    with suppress_close(roles):
                        pipeline.run()
                    jobs.move(record.id, JobState.SUCCEEDED, holder=taken.token)
            roles.close()
            return roles

    def _train(self, redis: Redis, job_id: str) -> None:
        """What a training worker does with a job, in this process."""
        jobs, store = JobStore(redis, 3600), ModelStore(self.settings.models)
        record = jobs.take(job_id)
        if record is None:
            return
        with Hold(jobs, record) as hold:
            order = StageOrder.model_validate(record.request).model_copy(update={"threads": self.threads})
            folder, stream = self.settings.jobs / order.role / order.version, PairStream(redis, order.lineage)
            claimed = prepare(order, folder, stream, Datasets(self.settings.home / "datasets"))
            if not store.has(order.role, order.version):
                make_ready(folder, hold)
                os.environ[TOKEN_VARIABLE] = str(record.token)
                run_order(folder, store, lambda progress: None)
                commit(folder, order, store, record, claimed, hold.confirm)
            stream.acknowledge(claimed, order.version)
            clean_up(folder)
            jobs.move(job_id, JobState.SUCCEEDED, holder=record.token)
        torch.set_num_threads(self.threads)


@contextmanager
def suppress_close(roles: LocalRoles) -> Iterator[None]:
    """A pipeline closes its clients when it ends; these are used again."""
    close = roles.close
    roles.__dict__["close"] = lambda: None
    try:
        yield
    finally:
        roles.__dict__["close"] = close
