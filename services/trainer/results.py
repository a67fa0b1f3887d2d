"""What a pipeline found out: figures of every stage, kept as files; and which versions its rounds stand on.

A result that is there is never measured again. Knows the lineage's folder and the judge's figures; does not train.
"""

from __future__ import annotations

import time

from services.trainer.context import Context
from services.trainer.measuring import Measurer
from vcllm.contracts.evaluation import EvalItem, StageResult
from vcllm.contracts.manifests import GateVerdict

SHOWN = {
    "attack_success",
    "consistent",
    "over_refusal",
    "benign_helpful",
    "agreement",
    "both_consistent",
    "broken",
}
"""Figures that a stage's event carries."""


class Results:
    """The results of one lineage."""

    def __init__(self, context: Context, measurer: Measurer) -> None:
        self.context, self.measurer = context, measurer

    def of(self, name: str) -> StageResult | None:
        kept = self.context.recall(f"stages/{name}.json")
        return None if kept is None else StageResult.model_validate(kept)

    def all(self) -> list[StageResult]:
        """Those there are, in the order of the run."""
        rounds = [f"round-{number}" for number in range(1, self.context.recipe.rounds.count + 1)]
        names = ["base", "base_prompted", "cpt", "sft", *rounds, "control"]
        return [result for name in names if (result := self.of(name)) is not None]

    def round(self, number: int) -> StageResult | None:
        return self.of(f"round-{number}")

    def gate(self, number: int) -> GateVerdict | None:
        result = self.round(number)
        return None if result is None else result.gate

    def trained(self, number: int) -> str | None:
        """The candidate that round `number` trained; None: it trained none, or is not done."""
        result, version = self.round(number), self.context.version(f"r{number}")
        return version if result is not None and result.version == version else None

    def measure(
        self,
        name: str,
        version: str,
        parent: str | None,
        *,
        system: bool = False,
        gate: GateVerdict | None = None,
        retention: list[EvalItem] | None = None,
    ) -> StageResult:
        """The figures of a version on the report's items and on kept queries of earlier rounds."""
        context = self.context
        started = time.monotonic()
        figures = self.measurer.report_figures(version, system)
        if retention:
            figures = figures.model_copy(update={"retention": self.measurer.gate_figures(version, retention).retention})
        metrics = {} if system else context.store.manifest("actor", version).metrics
        seconds = metrics.get("seconds", 0.0) + time.monotonic() - started
        return StageResult(
            **dict(figures),
            name=name,
            seconds=round(seconds, 1),
            peak_rss_bytes=metrics.get("peak_rss_bytes"),
            version=version,
            parent=parent,
            gate=gate,
        )

    def keep(self, result: StageResult) -> None:
        """Write a stage's figures down and say so."""
        context = self.context
        context.keep(f"stages/{result.name}.json", result.model_dump(mode="json"))
        shown = result.model_dump(mode="json", include=SHOWN)
        context.tell("evaluation", stage=result.name, **shown)
        if result.round is not None:
            counts = result.round.model_dump(mode="json", exclude={"archive", "work"})
            context.tell("round", round=result.round.number, phase="done", done=1, total=1, **counts)

    def measured(self, name: str, version: str, parent: str | None, *, system: bool = False) -> bool:
        """Measure and keep a stage without rounds or gate; True when it was there already."""
        if self.of(name) is not None:
            return True
        self.keep(self.measure(name, version, parent, system=system))
        return False
