"""What the arms of the loop's benchmark change: ours, and the baselines that leave one of its parts out.

Every arm starts from the same versions of a seed and has the same budget: rounds, goals, answers, steps, tokens a step.
An arm is a change to the recipe; some need a change to the pipeline as well, which nobody would want as a setting. No
arm has a gate: what is compared is the method, not the door behind it.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.trainer.pipeline import Pipeline
from services.trainer.played import Played
from vcllm.contracts.recipes import StageOrder

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget."""

    title: str
    recipe: Callable[[Recipe], None] = lambda recipe: None
    """Changes the recipe in place."""
    pipeline: Callable[[Pipeline], None] = lambda pipeline: None
    """Changes the pipeline before it runs."""
    own_start: bool = False
    """It cannot start from the version that the others start from: SFT is done again, by its own pipeline."""


def changed(recipe: Recipe, arm: str) -> Recipe:
    """The arm's own recipe."""
    mine = copy.deepcopy(recipe)
    mine["rounds"]["gate"] = {"enabled": False}
    ARMS[arm].recipe(mine)
    return mine


def _static(recipe: Recipe) -> None:
    recipe["rounds"] |= {"attacker_learns": False, "mutation_share": 0.0, "controller": {"enabled": False}}


def _ask_the_same(pipeline: Pipeline) -> None:
    """The first round's goals and the seeds of its queries in every round: the very same queries, whoever answers."""
    rounds = pipeline.campaign.rounds
    goals, seed, first = rounds._goals, rounds._seed, "rounds/round-1"

    def first_seed(folder: str, purpose: str) -> int:
        return seed(first if purpose.startswith("attack") else folder, purpose)

    # Of a round that is taken up again the goals are in its files, so the archive as it is now does no harm.
    kept: dict[str, Any] = {}
    rounds.__dict__["_goals"] = lambda folder, number, steering, num: kept.setdefault(
        first, goals(first, 1, rounds.steering(1, {}), num)
    )
    rounds.__dict__["_seed"] = first_seed


def _no_benign(recipe: Recipe) -> None:
    recipe["rounds"] |= {"benign_share": 0.0, "anchor_benign_share": 0.0}


def _approved_only(recipe: Recipe) -> None:
    recipe["rounds"]["preference"]["use_rejected"] = False


def _pointwise(recipe: Recipe) -> None:
    recipe["rounds"]["critic"] = {"pairwise": False}


def _share_weights(pipeline: Pipeline) -> None:
    """One model answers and attacks: SFT has the Attacker's seeds among its rows, a round's candidate its wins."""
    context, orders, campaign = pipeline.context, pipeline.orders, pipeline.campaign
    sft, candidate = orders.sft, orders.candidate

    def with_rows(order: StageOrder, rows: list[dict[str, Any]]) -> StageOrder:
        own = context.datasets.path(order.dataset).read_text(encoding="utf-8").splitlines()
        dataset = context.datasets.freeze([*map(json.loads, own), *rows])
        return order.model_copy(update={"dataset": dataset})

    def shared_sft() -> StageOrder:
        rows = context.world("attacker").attacker_rows(context.recipe.attacker.num_rows)
        return with_rows(sft(), _shuffled(rows, context.seed))

    def shared_orders(played: Played) -> tuple[StageOrder, None]:
        replayed = campaign.rounds.replay(played.number, len(played.pairs))
        order = candidate(played.number, played.versions.actor, len(played.pairs), replayed)
        return with_rows(order, campaign.rounds.attacker_rows(played)), None

    orders.__dict__["sft"] = shared_sft
    campaign.__dict__["_orders_of"] = shared_orders
    campaign.__dict__["_attacker"] = campaign._head


def _shuffled(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    return random.Random(seed).sample(rows, len(rows))


ARMS: dict[str, Arm] = {
    "ours": Arm("(g) the loop as the recipe has it"),
    "static": Arm("(a) the same queries every round, the Attacker as its seeds made it", _static, _ask_the_same),
    "no-benign": Arm("(b) attacks only, in rounds and in the instruction data beside them", _no_benign),
    "approved-only": Arm("(c) approved answers are learned, nothing is rejected", _approved_only),
    "pointwise": Arm("(d) one Critic's scores against fixed thresholds, no comparisons", _pointwise),
    "shared": Arm("(e) one set of weights attacks and answers", pipeline=_share_weights, own_start=True),
}
BASELINES = ("static", "no-benign", "approved-only", "pointwise", "shared", "trl")
TRL = "(f) TRL's online DPO, the same Critic as reward"
