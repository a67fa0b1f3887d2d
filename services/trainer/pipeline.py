"""The whole method as one resumable job: base, CPT, SFT, Critic, Attacker, rounds, control, report.

Every stage leaves a result file and a version; a stage whose result is there is reused. A pipeline that was cut off
anywhere is simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis import Redis

from services.trainer.campaign import Campaign
from services.trainer.children import Children
from services.trainer.context import Context
from services.trainer.guarding import guard_figures
from services.trainer.hold import Hold
from services.trainer.measuring import Measurer
from services.trainer.orders import Orders
from services.trainer.reporting import make_report
from services.trainer.results import Results
from services.trainer.ruling import check_judge
from services.trainer.settings import TrainerSettings
from services.trainer.stagedata import StageData
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.manifests import Role
from vcllm.contracts.recipes import StageOrder
from vcllm.evaluation.report import write_report
from vcllm.recipes import stage_names
from vcllm.settings import Settings
from vcllm.web.tracing import span


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
        self.data = StageData(self.context, [*self.measurer.items, *self.measurer.gate_items])
        self.orders = Orders(self.context, self.data)
        self.results = Results(self.context, self.measurer)
        self.campaign = Campaign(self.context, self.children, self.orders, self.results, self.data)

    def run(self) -> dict[str, Any]:
        """Run the stages asked for; the lineage and, after the last stage, where the report is."""
        context = self.context
        context.claim_lineage()
        check_judge(context, self.results.all())
        self.campaign.begin()
        self.children.put_back()
        names = stage_names(context.recipe)
        wanted = context.record.request.get("stage")
        try:
            self.data.take_in(names if wanted is None else [wanted])
            for name in names if wanted is None else [wanted]:
                context.hold.go_on()
                with span(f"stage {name}", {"vc.lineage": context.lineage}):
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
        if name.startswith("round-"):
            status = self.campaign.round(int(name.partition("-")[2]))
        else:
            stages = {
                "pretrain": self._base,
                "import": self._base,
                "cpt": self._cpt,
                "sft": self._sft,
                "critic": self._critic,
                "attacker": self._attacker,
                "control": self._control,
                "report": self._report,
            }
            status = "reused" if stages[name]() else "finished"
        seconds = round(time.monotonic() - started, 1)
        self.context.tell("stage", stage=name, status=status, seconds=seconds)

    # The stages. Each returns True when there was nothing left to do.

    def _base(self) -> bool:
        order = self.orders.base()
        self.children.wait(order)
        if self.context.record.request.get("stage") is None:
            self._start_ahead()
        reused = self.results.measured("base", order.version, None)
        self.results.measured("base_prompted", order.version, None, system=True)
        return reused

    def _start_ahead(self) -> None:
        """Queue the runs that need only the base, so that they train while others are measured."""
        if self.context.recipe.cpt is not None:
            self.children.start(self.orders.cpt())
        self.children.start(self.orders.critic())
        if self.context.recipe.rounds.hosted_attacker is None:
            self.children.start(self.orders.attacker())

    def _cpt(self) -> bool:
        order = self.orders.cpt()
        self.children.wait(order)
        return self.results.measured("cpt", order.version, order.parent)

    def _sft(self) -> bool:
        order = self.orders.sft()
        self.children.wait(order)
        return self.campaign.start_from(order)

    def _critic(self) -> bool:
        return self._role_ready("critic", self.orders.critic())

    def _attacker(self) -> bool:
        if self.context.recipe.rounds.hosted_attacker is not None:
            return True
        return self._role_ready("attacker", self.orders.attacker())

    def _role_ready(self, role: Role, order: StageOrder) -> bool:
        reused = self.context.store.has(role, order.version)
        self.children.wait(order)
        self.context.promote(role, order.version)
        return reused

    def _control(self) -> bool:
        steps = sum(
            self.context.store.manifest("actor", version).metrics["steps"]
            for number in range(1, self.context.recipe.rounds.count + 1)
            if (version := self.results.trained(number)) is not None
        )
        order = self.orders.control(steps)
        self.children.wait(order)
        return self.results.measured("control", order.version, order.parent)

    def _report(self) -> bool:
        context = self.context
        results = self.results.all()
        judgements = {
            result.name: self.measurer.judgements(result.version, self.measurer.items, result.name == "base_prompted")
            for result in results
            if result.version is not None
        }
        guard = guard_figures(context, results, self.measurer.items, judgements)
        elapsed = time.time() - (context.record.started or context.record.created)
        matrix = self.campaign.matrix()
        report = make_report(context, results, self.measurer.items, judgements, elapsed, matrix, guard)
        for folder in (context.folder / "report", context.settings.home / "report"):
            write_report(report, folder)
        return False
