"""Orders: what each stage of a pipeline asks of the training workers.

Knows recipes, names of versions and what a version starts from; not when a stage is due, nor what comes of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from services.trainer.context import Context
from services.trainer.stagedata import StageData
from vcllm.alignment.refit import refit_rows
from vcllm.contracts.base import digest
from vcllm.contracts.charter import Split
from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import AnyStage, ImportStage, StageOrder
from vcllm.contracts.reviews import Reviewed

NUM_PROBES = 4
"""Prompts by which servers recognise a version."""


class Orders:
    """The orders of one lineage; the same order each time it is asked for."""

    def __init__(self, context: Context, data: StageData) -> None:
        self.context, self.data = context, data

    def base(self) -> StageOrder:
        stage, world = self.context.recipe.pretrain, self.context.world("base")
        if stage is None:
            return self._order(ImportStage(), "actor", "base", None, self.context.datasets.freeze([]), alone=True)
        dataset = self.data.of(stage, lambda: world.base_corpus(stage.num_docs))
        return self._order(stage, "actor", "base", None, dataset, alone=True)

    def cpt(self) -> StageOrder:
        stage = self.context.recipe.cpt
        assert stage is not None, "asked for only when the recipe has it"
        scratch = self.context.recipe.base.scratch is not None
        world, num_replay = self.context.world("cpt"), stage.num_replay if scratch else 0
        dataset = self.data.of(stage, lambda: world.cpt_corpus(stage.num_docs, num_replay))
        return self._order(stage, "actor", "cpt", "base", dataset)

    def sft(self) -> StageOrder:
        stage = self.context.recipe.sft
        parent = "base" if self.context.recipe.cpt is None else "cpt"
        return self._order(stage, "actor", "sft", parent, self.data.sft(stage, "sft"))

    def critic(self) -> StageOrder:
        stage, world = self.context.recipe.critic, self.context.world("critic")
        dataset = self.data.of(stage, lambda: world.critic_rows(stage.num_rows))
        return self._order(stage, "critic", "critic", "base", dataset)

    def refitted_critic(self, number: int, reviewed: Sequence[Reviewed]) -> StageOrder:
        """The Critic once more from the base, on its own rows and those that people decided."""
        stage, world = self.context.recipe.critic, self.context.world("critic")
        if stage.data is not None:
            raise BadRequest("refit_after: a Critic with data of its own is fitted again by a recipe that names more.")
        rows = refit_rows(reviewed, num_replay=stage.num_rows)
        dataset = self.context.datasets.freeze([*world.critic_rows(stage.num_rows), *rows])
        return self._order(stage, "critic", f"critic-r{number}", "base", dataset, round_number=number)

    def attacker(self) -> StageOrder:
        stage, world = self.context.recipe.attacker, self.context.world("attacker")
        dataset = self.data.of(stage, lambda: world.attacker_rows(stage.num_rows))
        return self._order(stage, "attacker", "attacker", "base", dataset)

    def candidate(self, number: int, parent: str, num_pairs: int, replayed: list[str]) -> StageOrder:
        """The Actor of a round; it claims whatever pairs wait. parent: the version it starts from."""
        params, answers = self.context.recipe.rounds, self.context.recipe.sft.answers
        num_benign = round(params.preference.num_anchor * params.anchor_benign_share)
        world = self.context.world(f"anchor-{number}")
        anchors = world.sft_rows(params.preference.num_anchor - num_benign, num_benign, answers)
        return self._order(
            params.preference,
            "actor",
            f"r{number}",
            self._stage_of(parent),
            self.data.preferences(params.preference, anchors, number, num_pairs),
            round_number=number,
            claims_pairs=True,
            replayed=replayed,
        )

    def attacker_update(self, number: int, parent: str, rows: list[dict[str, Any]]) -> StageOrder:
        """The Attacker that has learned of a round."""
        stage, dataset = self.context.recipe.rounds.attacker, self.context.datasets.freeze(rows)
        return self._order(
            stage, "attacker", f"attacker-r{number}", self._stage_of(parent), dataset, round_number=number
        )

    def control(self, num_steps: int) -> StageOrder:
        """Plain SFT from the same version, with the steps, tokens and learning rate of all rounds together."""
        recipe, params = self.context.recipe, self.context.recipe.rounds.preference
        optim = params.optim.model_copy(update={"max_steps": max(1, num_steps), "epochs": 1000.0})
        stage = recipe.sft.model_copy(update={"optim": optim})
        return self._order(stage, "actor", "control", "sft", self.data.sft(stage, "control"), alone=True)

    def _stage_of(self, version: str) -> str:
        return version.removeprefix(f"{self.context.lineage}-")

    def _order(
        self,
        stage: AnyStage,
        role: Role,
        name: str,
        parent: str | None,
        dataset: str,
        *,
        alone: bool = False,
        round_number: int = 0,
        claims_pairs: bool = False,
        replayed: list[str] | None = None,
    ) -> StageOrder:
        context = self.context
        parent_role = "attacker" if parent is not None and parent.startswith("attacker") else "actor"
        if parent is not None and not context.store.has(parent_role, context.version(parent)):
            raise BadRequest(
                f"Stage '{name}' starts from '{parent}', which lineage '{context.lineage}' does not have yet."
            )
        return StageOrder(
            stage=stage,
            role=role,
            version=context.version(name),
            lineage=context.lineage,
            round=round_number,
            seed=context.seed,
            parent=None if parent is None else f"{parent_role}/{context.version(parent)}",
            base=context.recipe.base,
            lora=None if stage.stage in ("pretrain", "import") else context.recipe.lora,
            launch=None if stage.stage == "import" else context.recipe.launch,
            dataset=dataset,
            claims_pairs=claims_pairs,
            replayed=replayed or [],
            threads=None if alone else max(1, (os.cpu_count() or 1) // 2),
            recipe=context.recipe.name,
            recipe_hash=digest(context.recipe.model_dump(mode="json")),
            charter=context.charter.hash,
            probes=self._probes(),
        )

    def _probes(self) -> list[str]:
        cards = self.context.charter.cards_of(Split.TRAIN)[: NUM_PROBES // 2]
        return [item.benign[0].question[language] for item in cards for language in ("zh", "en")]
