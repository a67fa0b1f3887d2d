"""From what a request asks for to a fine-tuning job in which everything is settled but the rows.

Settled here and kept in the job, so that a recipe that is edited, or an alias that moves, changes nothing for a job
that waits or is resumed. `auto` means what the recipe of the model's lineage says of that stage: its learning rate, its
tokens per step, its epochs. A lineage whose recipe is gone or was changed has the defaults below.
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass

from gateway.state import GatewayState
from vcllm.contracts.base import digest
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.contracts.files import FileCheck, Use
from vcllm.contracts.fine_tuning import (
    Dpo,
    DpoHyperparameters,
    FineTune,
    FineTuningCreate,
    Hyperparameters,
    Method,
    MethodName,
    Supervised,
)
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.contracts.recipes import Base, Optim, PreferenceStage, Recipe, Scratch, SftStage, StageOrder
from vcllm.recipes import load_recipe, recipe_names

USES: dict[MethodName, Use] = {"supervised": "sft", "dpo": "preference"}
LEARNING_RATES = {"supervised": {"full": 1e-5, "adapter": 1e-4}, "dpo": {"full": 5e-7, "adapter": 5e-6}}
EPOCHS = {"supervised": 3.0, "dpo": 1.0}
BATCH_TOKENS = 4096
MIN_BATCH_TOKENS = 32
LINEAGE_PREFIX, SUFFIX_LENGTH = 28, 20
"""Characters of the parent's lineage and of the suffix in the new version's name, which has at most 64."""
MARK = "-ft-"


@dataclass(frozen=True)
class Parent:
    """The version a job starts from, and the recipe that its lineage was made by."""

    manifest: Manifest
    recipe: Recipe | None
    """None: no recipe here is that one."""


def find_parent(state: GatewayState, model: str) -> Parent:
    """A version of the Actor by name, or the promoted one; NotFound where there is none."""
    version = state.aliases.get("actor") if model == ALIGNED_MODEL else model
    if version is None:
        raise NotFound(f"'{ALIGNED_MODEL}' means no version yet.", param="model", code="model_not_found")
    try:
        manifest = state.models.manifest("actor", version)
    except (NotFound, BadRequest) as error:
        message = f"There is no model '{model}' to fine-tune. Use '{ALIGNED_MODEL}', or see GET /v1/versions."
        raise NotFound(message, param="model", code="model_not_found") from error
    return Parent(manifest, _recipe_of(state, manifest))


def settle(body: FineTuningCreate, parent: Parent, check: FileCheck, *, job: str, owner: str) -> FineTune:
    """The job of a request; the file's check tells how long its rows are."""
    method = body.how.type
    stage = _sft_stage(parent) if method == "supervised" else _preference_stage(parent)
    tokens_per_row = max(1.0, check.num_tokens / max(1, check.num_usable))
    asked = body.how.asked
    optim = _tuned(stage.optim, asked, tokens_per_row)
    changes: dict[str, object] = {"optim": optim, "data": None}
    if isinstance(asked, DpoHyperparameters) and isinstance(asked.beta, int | float):
        changes["beta"] = float(asked.beta)
    tuned = stage.model_copy(update=changes)
    lineage = _lineage(parent.manifest.lineage, job)
    order = StageOrder(
        stage=tuned,
        role="actor",
        version=f"{lineage}-{_slug(body.suffix) or USES[method][:4]}",
        lineage=lineage,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        parent=f"actor/{parent.manifest.name}",
        base=_base(parent),
        lora=parent.recipe.lora if parent.recipe else None,
        launch=parent.recipe.launch if parent.recipe else None,
        dataset="",
        recipe=parent.recipe.name if parent.recipe else "fine-tune",
        recipe_hash=parent.manifest.recipe_hash,
        charter=parent.manifest.charter,
        probes=[probe.prompt for probe in parent.manifest.probes],
    )
    return FineTune(
        file=body.training_file,
        model=body.model,
        method=_resolved(method, tuned, optim.learning_rate / stage.optim.learning_rate, tokens_per_row),
        suffix=body.suffix,
        metadata=body.metadata,
        owner=owner,
        contamination=parent.recipe.contamination if parent.recipe else "refuse",
        order=order,
    )


def _recipe_of(state: GatewayState, manifest: Manifest) -> Recipe | None:
    """The recipe with the very content that the manifest names; one that was edited since is another."""
    folder = state.settings.recipes
    for name in recipe_names(folder):
        try:
            recipe = load_recipe(folder, name)
        except BadRequest:
            continue  # somebody is at work on it
        if digest(recipe.model_dump(mode="json")) == manifest.recipe_hash:
            return recipe
    return None


def _sft_stage(parent: Parent) -> SftStage:
    return parent.recipe.sft if parent.recipe else SftStage(optim=_default_optim(parent, "supervised"))


def _preference_stage(parent: Parent) -> PreferenceStage:
    if parent.recipe:
        return parent.recipe.rounds.preference.model_copy(update={"use_rejected": True})
    return PreferenceStage(optim=_default_optim(parent, "dpo"))


def _default_optim(parent: Parent, method: MethodName) -> Optim:
    rate = LEARNING_RATES[method][parent.manifest.format]
    return Optim(learning_rate=rate, batch_tokens=BATCH_TOKENS, epochs=EPOCHS[method])


def _tuned(optim: Optim, asked: Hyperparameters, tokens_per_row: float) -> Optim:
    changes: dict[str, object] = {}
    if isinstance(asked.n_epochs, int):
        changes |= {"epochs": float(asked.n_epochs), "max_steps": None}
    if isinstance(asked.learning_rate_multiplier, int | float):
        changes["learning_rate"] = optim.learning_rate * asked.learning_rate_multiplier
    if isinstance(asked.batch_size, int):
        changes["batch_tokens"] = max(MIN_BATCH_TOKENS, round(asked.batch_size * tokens_per_row))
    return optim.model_copy(update=changes)


def _resolved(
    method: MethodName, stage: SftStage | PreferenceStage, multiplier: float, tokens_per_row: float
) -> Method:
    """What `auto` has come to; with whole epochs, as the API counts them."""
    plain = {
        "batch_size": max(1, min(4096, round(stage.optim.batch_tokens / tokens_per_row))),
        "learning_rate_multiplier": float(f"{multiplier:.6g}"),
        "n_epochs": max(1, min(1000, math.ceil(stage.optim.epochs))),
    }
    if isinstance(stage, PreferenceStage):
        return Method(type=method, dpo=Dpo(hyperparameters=DpoHyperparameters(**plain, beta=stage.beta)))
    return Method(type=method, supervised=Supervised(hyperparameters=Hyperparameters(**plain)))


def _base(parent: Parent) -> Base:
    """What an adapter of the parent sits on; complete weights need none, but an order names one."""
    if parent.recipe:
        return parent.recipe.base
    model = parent.manifest.base
    return Base(model=model) if model is not None else Base(scratch=Scratch())


def _lineage(parent: str, job: str) -> str:
    """A lineage of its own: a version that nobody's rounds made must not count among theirs."""
    return f"{parent.partition(MARK)[0][:LINEAGE_PREFIX].rstrip('-._')}{MARK}{job[-8:]}"


def _slug(suffix: str | None) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", (suffix or "").lower())[:SUFFIX_LENGTH].strip("-._")
