"""What each stage learns from: the operator's data where the recipe names it, else the starter world's.

Knows snapshots and the checks that hold in a pipeline; not how a stage is ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from services.trainer.blocking import kept_from_rounds
from services.trainer.context import Context
from services.trainer.datasets import OperatorData, Row
from services.trainer.imported import ImportedPreferences, room
from vcllm.contracts.evaluation import EvalItem
from vcllm.contracts.pairs import Pair
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import AttackerStage, CptStage, CriticStage, PreferenceStage, PretrainStage, SftStage
from vcllm.data.contamination import Contamination
from vcllm.evaluation.bench.load import held_out_questions

Fed = PretrainStage | CptStage | SftStage | CriticStage | AttackerStage | PreferenceStage
"""Stages whose data the operator may bring."""


class StageData:
    """The data of one pipeline's stages."""

    def __init__(self, context: Context, asked: Sequence[EvalItem]) -> None:
        """asked: every question of the run's evaluation; nobody's data may quote one."""
        self.context, self.asked = context, asked

    def take_in(self, names: Sequence[str]) -> None:
        """Check the operator's data of every stage before any of them runs; BadRequest tells all that is wrong."""
        recipe, reasons = self.context.recipe, []
        if recipe.rounds.attacker.data is not None:
            reasons.append("[rounds.attacker] learns from the wins of its rounds: put its data into [attacker].")
        stages: dict[str, Fed | None] = {
            "pretrain": recipe.pretrain,
            "cpt": recipe.cpt,
            "sft": recipe.sft,
            "critic": recipe.critic,
            "attacker": recipe.attacker,
            "rounds.preference": recipe.rounds.preference,
        }
        for name, stage in stages.items():
            wanted = name in names or (name == "sft" and "control" in names)
            wanted |= name == "rounds.preference" and any(one.startswith("round-") for one in names)
            if not wanted or stage is None or stage.data is None:
                continue
            try:
                self.context.tell("data", stage=name, sets=self.taken_in(stage)["sets"])
            except BadRequest as error:
                reasons.append(f"[{name}] {error.message}")
        if reasons:
            raise BadRequest(" ".join(reasons), param="recipe", code="data_invalid")

    def taken_in(self, stage: Fed) -> dict[str, Any]:
        """The snapshot of the operator's data and its counts; what was taken in once is found again."""
        assert stage.data is not None, "asked for only when the recipe names data"
        context, max_length = self.context, stage.optim.max_length
        name = f"data/{self.operator_data.fingerprint(stage.data, stage.stage, max_length)}.json"
        kept = context.recall(name)
        if kept is None or not context.datasets.path(kept["dataset"]).is_file():
            dataset, sets = self.operator_data.freeze(stage.data, stage.stage, max_length)
            kept = {"dataset": dataset, "sets": sets}
            context.keep(name, kept)
        return dict(kept)

    @cached_property
    def evaluated(self) -> Contamination:
        """The questions of this run's evaluation and of VC-Bench."""
        return Contamination([*((item.id, item.query) for item in self.asked), *held_out_questions()])

    @cached_property
    def kept_from_rounds(self) -> Contamination:
        """What no pair of the rounds may quote."""
        return kept_from_rounds(self.asked)

    def preferences(self, stage: PreferenceStage, anchors: Iterable[Row], number: int, num_own: int) -> str:
        """What a round's candidate learns beside its pairs: instruction data, and the operator's rows for that round.

        num_own: pairs of the round, imported ones among them.
        """
        count, imported = self.context.recipe.rounds.count, self._imported(stage)
        rows: Iterable[Row] = ()
        if imported is not None:
            share = self.context.recipe.rounds.source_caps.get("imported", 1.0)
            num_pairs = len(imported.pairs_of(number, count))
            most = room(num_own - num_pairs, share)
            rows = imported.rows_of(number, count, None if most is None else max(0, most - num_pairs))
        return self.context.datasets.freeze(chain(anchors, rows))

    def imported_pairs(self, number: int) -> list[Pair]:
        """The operator's approved pairs for a round."""
        rounds = self.context.recipe.rounds
        imported = self._imported(rounds.preference)
        return [] if imported is None else imported.pairs_of(number, rounds.count)

    def _imported(self, stage: PreferenceStage) -> ImportedPreferences | None:
        if stage.data is None:
            return None
        return ImportedPreferences(self.operator_data, stage.data, str(self.taken_in(stage)["dataset"]))

    @cached_property
    def operator_data(self) -> OperatorData:
        """What the operator brings is held against the questions of this pipeline; the starter's own world is not."""
        context = self.context
        return OperatorData(
            folder=context.settings.data,
            datasets=context.datasets,
            charter=context.charter.hash,
            evaluated=self.evaluated,
            policy=context.recipe.contamination,
            seed=context.seed,
            go_on=context.hold.go_on,
        )

    def of(self, stage: Fed, starter: Callable[[], Iterable[Row]]) -> str:
        """The snapshot a stage learns from: the operator's data where the recipe names it, else the starter's."""
        if stage.data is None:
            return self.context.datasets.freeze(starter())
        return str(self.taken_in(stage)["dataset"])

    def sft(self, stage: SftStage, purpose: str) -> str:
        world = self.context.world(purpose)
        return self.of(stage, lambda: world.sft_rows(stage.num_attacks, stage.num_benign, stage.answers))
