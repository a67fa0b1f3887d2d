"""The whole method as one resumable job: base, CPT, SFT, Critic, Attacker, rounds, control, report.

Every stage leaves a result file and a version; a stage whose result is there is reused. A pipeline that was cut off
anywhere is simply run again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from redis import Redis

from services.trainer.children import Children
from services.trainer.context import Context
from services.trainer.datasets import OperatorData, Row
from services.trainer.hold import Hold
from services.trainer.measuring import Measurer
from services.trainer.reporting import make_report
from services.trainer.rounds import Played, Rounds
from services.trainer.settings import TrainerSettings
from vcllm.alignment.gate import judge_candidate
from vcllm.contracts.base import digest
from vcllm.contracts.charter import Split
from vcllm.contracts.evaluation import RoundSummary, StageResult
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.manifests import GateVerdict, Role
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import (
    AnyStage,
    AttackerStage,
    CptStage,
    CriticStage,
    ImportStage,
    PretrainStage,
    SftStage,
    StageOrder,
)
from vcllm.data.contamination import Contamination
from vcllm.evaluation.bench.load import held_out_questions
from vcllm.evaluation.report import write_report
from vcllm.recipes import stage_names
from vcllm.settings import Settings

Fed = PretrainStage | CptStage | SftStage | CriticStage | AttackerStage
"""Stages whose data the operator may bring."""
NUM_PROBES = 4
"""Prompts by which servers recognise a version."""


class Pipeline:
    """One run of a recipe."""

    def __init__(
        self,
        record: JobRecord,
        hold: Hold,
        redis: Redis,
        settings: Settings,
        trainer: TrainerSettings,
        send: Callable[[str, str], None],
    ) -> None:
        self.context = Context.open(record, hold, redis, settings, trainer)
        self.children = Children(self.context, send)
        self.measurer = Measurer(self.context)
        self.rounds = Rounds(self.context)

    def run(self) -> dict[str, Any]:
        """Run the stages asked for; the lineage and, after the last stage, where the report is."""
        context = self.context
        context.claim_lineage()
        self.children.put_back()
        names = stage_names(context.recipe)
        wanted = context.record.request.get("stage")
        try:
            self._take_in(names if wanted is None else [wanted])
            for name in names if wanted is None else [wanted]:
                context.hold.go_on()
                self._run(name)
        except Exception:
            self.children.follow()
            context.hold.go_on()  # a call that was hung up because the work is to end did not fail
            raise
        finally:
            context.close()
        return {"lineage": context.lineage, "report": str(context.settings.home / "report")}

    def _run(self, name: str) -> None:
        started = time.monotonic()
        self.context.tell("stage", stage=name, status="started")
        reused = {
            "pretrain": self._base,
            "import": self._base,
            "cpt": self._cpt,
            "sft": self._sft,
            "critic": self._critic,
            "attacker": self._attacker,
            "control": self._control,
            "report": self._report,
        }.get(name, lambda: self._round(int(name.partition("-")[2])))()
        seconds = round(time.monotonic() - started, 1)
        self.context.tell("stage", stage=name, status="reused" if reused else "finished", seconds=seconds)

    # The stages. Each returns True when there was nothing left to do.

    def _base(self) -> bool:
        order = self._order_base()
        self.children.wait(order)
        if self.context.record.request.get("stage") is None:
            self._start_ahead()
        reused = self._evaluated("base", order.version, None)
        self._evaluated("base_prompted", order.version, None, system=True)
        return reused

    def _cpt(self) -> bool:
        order = self._order_cpt()
        self.children.wait(order)
        return self._evaluated("cpt", order.version, order.parent)

    def _sft(self) -> bool:
        order = self._order_sft()
        self.children.wait(order)
        if self._result("sft") is not None:
            return True
        verdict = self._gate(order.version, self.context.version("base"), 1)
        reused = self._evaluated("sft", order.version, order.parent, gate=verdict)
        self._promote_if_passed(order.version, verdict)
        return reused

    def _critic(self) -> bool:
        return self._role_ready("critic", self._order_critic())

    def _attacker(self) -> bool:
        return self._role_ready("attacker", self._order_attacker())

    def _round(self, number: int) -> bool:
        context = self.context
        played = self._played_up_to(number)
        parent = self._head(number)
        candidate, attacker = self._orders_of_round(played, parent)
        if self._result(f"round-{number}") is not None:
            return True
        self.children.start(candidate)
        self.children.wait(attacker)
        self.children.wait(candidate)
        context.aliases.set("attacker", "current", attacker.version)
        verdict = self._gate(candidate.version, parent, number)
        summary = self.rounds.summary(played, len(candidate.replayed))
        self._evaluated(
            f"round-{number}",
            candidate.version,
            candidate.parent,
            gate=verdict,
            round_summary=summary,
            number=number,
        )
        self._promote_if_passed(candidate.version, verdict)
        return False

    def _control(self) -> bool:
        order = self._order_control()
        self.children.wait(order)
        return self._evaluated("control", order.version, order.parent)

    def _report(self) -> bool:
        context = self.context
        results = [result for name in self._measured() if (result := self._result(name)) is not None]
        judgements = {
            result.name: self.measurer.judgements(result.version, self.measurer.items, result.name == "base_prompted")
            for result in results
            if result.version is not None
        }
        elapsed = time.time() - (context.record.started or context.record.created)
        report = make_report(context, results, self.measurer.items, judgements, elapsed)
        for folder in (context.folder / "report", context.settings.home / "report"):
            write_report(report, folder)
        return False

    # Orders: what each stage asks of the training workers.

    def _start_ahead(self) -> None:
        """Queue the runs that need only the base, so that they train while others are measured."""
        if self.context.recipe.cpt is not None:
            self.children.start(self._order_cpt())
        self.children.start(self._order_critic())
        self.children.start(self._order_attacker())

    def _order_base(self) -> StageOrder:
        stage, world = self.context.recipe.pretrain, self.context.world("base")
        if stage is None:
            return self._order(ImportStage(), "actor", "base", None, self.context.datasets.freeze([]), alone=True)
        dataset = self._dataset(stage, lambda: world.base_corpus(stage.num_docs))
        return self._order(stage, "actor", "base", None, dataset, alone=True)

    def _order_cpt(self) -> StageOrder:
        stage = self.context.recipe.cpt
        assert stage is not None, "asked for only when the recipe has it"
        scratch = self.context.recipe.base.scratch is not None
        world, num_replay = self.context.world("cpt"), stage.num_replay if scratch else 0
        dataset = self._dataset(stage, lambda: world.cpt_corpus(stage.num_docs, num_replay))
        return self._order(stage, "actor", "cpt", "base", dataset)

    def _order_sft(self) -> StageOrder:
        stage = self.context.recipe.sft
        parent = "base" if self.context.recipe.cpt is None else "cpt"
        return self._order(stage, "actor", "sft", parent, self._sft_dataset(stage, "sft"))

    def _order_critic(self) -> StageOrder:
        stage, world = self.context.recipe.critic, self.context.world("critic")
        dataset = self._dataset(stage, lambda: world.critic_rows(stage.num_rows))
        return self._order(stage, "critic", "critic", "base", dataset)

    def _order_attacker(self) -> StageOrder:
        stage, world = self.context.recipe.attacker, self.context.world("attacker")
        dataset = self._dataset(stage, lambda: world.attacker_rows(stage.num_rows))
        return self._order(stage, "attacker", "attacker", "base", dataset)

    def _orders_of_round(self, played: Played, parent: str) -> tuple[StageOrder, StageOrder]:
        params, number = self.context.recipe.rounds, played.number
        half = params.preference.num_anchor // 2
        anchors = self.context.world(f"anchor-{number}").sft_rows(half, half, self.context.recipe.sft.answers)
        candidate = self._order(
            params.preference,
            "actor",
            f"r{number}",
            parent.removeprefix(f"{self.context.lineage}-"),
            self.context.datasets.freeze(anchors),
            round_number=number,
            claims_pairs=True,
            replayed=self.rounds.replay(number, len(played.pairs)),
        )
        attacker = self._order(
            params.attacker,
            "attacker",
            f"attacker-r{number}",
            self._attacker_stage(number),
            self.context.datasets.freeze(self.rounds.attacker_rows(played)),
            round_number=number,
        )
        return candidate, attacker

    def _order_control(self) -> StageOrder:
        """Plain SFT from the same version, with the steps, tokens and learning rate of all rounds together."""
        recipe, params = self.context.recipe, self.context.recipe.rounds.preference
        steps = sum(
            self.context.store.manifest("actor", self.context.version(f"r{number}")).metrics["steps"]
            for number in range(1, recipe.rounds.count + 1)
        )
        optim = params.optim.model_copy(update={"max_steps": max(1, steps), "epochs": 1000.0})
        stage = recipe.sft.model_copy(update={"optim": optim})
        return self._order(stage, "actor", "control", "sft", self._sft_dataset(stage, "control"), alone=True)

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

    # Data: what each stage learns from.

    def _take_in(self, names: Sequence[str]) -> None:
        """Check the operator's data of every stage before any of them runs; BadRequest tells all that is wrong."""
        recipe, reasons = self.context.recipe, []
        if recipe.rounds.attacker.data is not None:
            reasons.append("[rounds.attacker] learns from the wins of its rounds: put its data into [attacker].")
        for name in ("pretrain", "cpt", "sft", "critic", "attacker"):
            stage: Fed | None = getattr(recipe, name)
            wanted = name in names or (name == "sft" and "control" in names)
            if not wanted or stage is None or stage.data is None:
                continue
            try:
                self.context.tell("data", stage=name, sets=self._taken_in(stage)["sets"])
            except BadRequest as error:
                reasons.append(f"[{name}] {error.message}")
        if reasons:
            raise BadRequest(" ".join(reasons), param="recipe", code="data_invalid")

    def _taken_in(self, stage: Fed) -> dict[str, Any]:
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
    def operator_data(self) -> OperatorData:
        """What the operator brings is held against the questions of this pipeline; the starter's own world is not."""
        context = self.context
        asked = [(item.id, item.query) for item in (*self.measurer.items, *self.measurer.gate_items)]
        return OperatorData(
            folder=context.settings.data,
            datasets=context.datasets,
            charter=context.charter.hash,
            evaluated=Contamination([*asked, *held_out_questions()]),
            policy=context.recipe.contamination,
            seed=context.seed,
            go_on=context.hold.go_on,
        )

    def _dataset(self, stage: Fed, starter: Callable[[], Iterable[Row]]) -> str:
        """The snapshot a stage learns from: the operator's data where the recipe names it, else the starter's."""
        if stage.data is None:
            return self.context.datasets.freeze(starter())
        return str(self._taken_in(stage)["dataset"])

    def _sft_dataset(self, stage: SftStage, purpose: str) -> str:
        world = self.context.world(purpose)
        return self._dataset(stage, lambda: world.sft_rows(stage.num_attacks, stage.num_benign, stage.answers))

    # Results, gate and promotion.

    def _measured(self) -> list[str]:
        rounds = [f"round-{number}" for number in range(1, self.context.recipe.rounds.count + 1)]
        return ["base", "base_prompted", "cpt", "sft", *rounds, "control"]

    def _result(self, name: str) -> StageResult | None:
        kept = self.context.recall(f"stages/{name}.json")
        return None if kept is None else StageResult.model_validate(kept)

    def _evaluated(
        self,
        name: str,
        version: str,
        parent: str | None,
        *,
        system: bool = False,
        gate: GateVerdict | None = None,
        round_summary: RoundSummary | None = None,
        number: int = 0,
    ) -> bool:
        """Measure and keep a stage's figures; True when they were there already."""
        context = self.context
        if self._result(name) is not None:
            return True
        started = time.monotonic()
        figures = self.measurer.report_figures(version, system)
        retention = self.rounds.retention(number) if number else []
        if retention:
            figures = figures.model_copy(update={"retention": self.measurer.gate_figures(version, retention).retention})
        metrics = {} if system else context.store.manifest("actor", version).metrics
        seconds = metrics.get("seconds", 0.0) + time.monotonic() - started
        result = StageResult(
            **dict(figures),
            name=name,
            seconds=round(seconds, 1),
            peak_rss_bytes=metrics.get("peak_rss_bytes"),
            version=version,
            parent=parent,
            gate=gate,
            round=round_summary,
        )
        context.keep(f"stages/{name}.json", result.model_dump(mode="json"))
        shown = result.model_dump(
            mode="json",
            include={
                "attack_success",
                "consistent",
                "over_refusal",
                "benign_helpful",
                "agreement",
                "both_consistent",
                "broken",
            },
        )
        context.tell("evaluation", stage=name, **shown)
        if round_summary is not None:
            counts = round_summary.model_dump(mode="json", exclude={"archive"})
            context.tell("round", round=number, phase="done", done=1, total=1, **counts)
        return False

    def _gate(self, candidate: str, parent: str, number: int) -> GateVerdict:
        """Play the gate's items against both; dev items and the queries kept from earlier rounds."""
        retention = self.rounds.retention(number)
        verdict = judge_candidate(
            self.measurer.gate_figures(candidate, retention),
            self.measurer.gate_figures(parent, retention),
            self.context.charter.charter.thresholds,
        )
        self.context.tell("gate", version=candidate, **verdict.model_dump(mode="json"))
        return verdict

    def _promote_if_passed(self, version: str, verdict: GateVerdict) -> None:
        context = self.context
        context.hold.confirm()
        context.aliases.set("actor", "candidate", version)
        if verdict.passed:
            context.aliases.promote("actor", version)

    def _role_ready(self, role: Role, order: StageOrder) -> bool:
        reused = self.context.store.has(role, order.version)
        self.children.wait(order)
        self.context.hold.confirm()
        self.context.aliases.promote(role, order.version)
        return reused

    # Where the rounds stand.

    def _played_up_to(self, number: int) -> Played:
        """Recall (or play) every round up to this one, in order: each builds on the archive of those before."""
        for earlier in range(1, number + 1):
            if earlier not in self.rounds.played:
                attacker = self.context.version(self._attacker_stage(earlier))
                critic = self.context.version("critic")
                self.rounds.play(earlier, self._head(earlier), attacker, critic)
        return self.rounds.played[number]

    def _head(self, number: int) -> str:
        """The version round `number` starts from: the newest of the lineage that passed its gate, else SFT."""
        for earlier in range(number - 1, 0, -1):
            result = self._result(f"round-{earlier}")
            if result is not None and result.gate is not None and result.gate.passed:
                return self.context.version(f"r{earlier}")
        return self.context.version("sft")

    def _attacker_stage(self, number: int) -> str:
        """The Attacker that writes round `number`."""
        return "attacker" if number == 1 else f"attacker-r{number - 1}"
