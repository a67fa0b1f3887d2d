"""What is known of a running pipeline, put together from its events.

Pure: events in, rows out. Keys it does not know are let pass, missing ones leave a blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vcllm.contracts.jobs import FINISHED, Event

STARTED, FINISHED_STAGE, REUSED = "started", "finished", "reused"


@dataclass
class StageLine:
    """How far a stage has come."""

    name: str
    status: str = STARTED
    step: int = 0
    steps: int | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    loss: float | None = None
    seconds: float | None = None
    phase: str | None = None
    """In a round: `attack`, `answer`, `critique` or `pair`."""
    announced: bool = False
    """The pipeline said that it runs; otherwise it only trains ahead, or beside a round."""

    @property
    def is_over(self) -> bool:
        done = not self.announced and self.steps is not None and self.step >= self.steps
        return self.status != STARTED or done


@dataclass
class Figures:
    """The row of a stage in the table of results; every share may be missing."""

    stage: str
    valid: str | None = None
    """Valid attacks of those asked for."""
    attacker_success: float | None = None
    pairs: int | None = None
    held_out_zh: float | None = None
    held_out_en: float | None = None
    held_out_cards: float | None = None
    """Mean of both languages."""
    over_refusal: float | None = None
    helpful: float | None = None
    agreement: float | None = None
    both_consistent: float | None = None
    broken: float | None = None
    gate: str | None = None


@dataclass
class Board:
    """Everything shown while a job is followed."""

    stages: dict[str, StageLine] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    state: str | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in FINISHED

    @property
    def current(self) -> StageLine | None:
        """The stage that runs."""
        announced = [line for line in self.stages.values() if line.announced and not line.is_over]
        return announced[-1] if announced else None

    def take(self, event: Event) -> None:
        """Bring the board up to date with one event."""
        data = event.data
        match event.type:
            case "state":
                self.state = _text(data.get("state"))
                self.error = _text(data.get("error"))
            case "stage":
                self._stage(data)
            case "progress":
                self._progress(data)
            case "round":
                self._round(data)
            case "evaluation":
                stage = _text(data.get("stage")) or "?"
                read_figures(self._row(stage), data)
            case "gate":
                self._gate(data)
            case "data":
                self.messages.extend(told_data(data))
            case "log":
                self.messages.append(str(data.get("message", "")))

    def _stage(self, data: Mapping[str, Any]) -> None:
        name = str(data.get("stage", "?"))
        line = self.stages.setdefault(name, StageLine(name))
        line.announced = True
        line.status = str(data.get("status", STARTED))
        line.seconds = _number(data.get("seconds"))

    def _progress(self, data: Mapping[str, Any]) -> None:
        line = self._line(data)
        line.phase = None
        line.step, line.steps = int(data.get("step") or 0), data.get("steps")
        line.tokens_per_s, line.eta_s = _number(data.get("tokens_per_s")), _number(data.get("eta_s"))
        line.loss = _number(data.get("loss"))

    def _round(self, data: Mapping[str, Any]) -> None:
        name = f"round-{data.get('round', '?')}"
        line = self.stages.setdefault(name, StageLine(name))
        line.phase = _text(data.get("phase"))
        line.step, line.steps = int(data.get("done") or 0), data.get("total")
        line.tokens_per_s = line.eta_s = line.loss = None
        row = self._row(name)
        _read_round(row, data)
        if line.phase == "pair" and data.get("done") is not None and "num_pairs" not in data:
            row.pairs = int(data["done"])

    def _gate(self, data: Mapping[str, Any]) -> None:
        running = self.current
        stage = _text(data.get("stage")) or (running.name if running else str(data.get("version", "?")))
        verdict = told_gate(data)
        failed = [str(check.get("name")) for check in data.get("checks") or [] if not check.get("passed")]
        self._row(stage).gate = f"{verdict}: {', '.join(failed)}" if failed and verdict == "refused" else verdict

    def _line(self, data: Mapping[str, Any]) -> StageLine:
        """The line an event without a stage of its own belongs to is that of the stage that runs."""
        name = _text(data.get("stage"))
        running = self.current
        if name is None and running is not None:
            return running
        name = name or "?"
        return self.stages.setdefault(name, StageLine(name))

    def _row(self, stage: str) -> Figures:
        return self.figures.setdefault(stage, Figures(stage))


def told_gate(verdict: Mapping[str, Any]) -> str:
    """`passed`, `held` for one that waits for a person, or `refused`."""
    if verdict.get("passed"):
        return "passed"
    return "held" if verdict.get("decision") == "hold" else "refused"


def told_data(data: Mapping[str, Any]) -> list[str]:
    """A line for each of the operator's sets: what a stage took in, and what it left out."""
    words = {
        "empty": "empty",
        "duplicates": "repeated",
        "too_long": "too long",
        "contaminated": "quoting the evaluation",
    }
    lines = []
    for counts in data.get("sets") or []:
        noted = [f"{counts[name]:,} {word}" for name, word in words.items() if counts.get(name)]
        told = ", ".join([f"{counts.get('usable', 0):,} of {counts.get('rows', 0):,} rows usable", *noted])
        lines.append(f"{data.get('stage', '?')}: {counts.get('set', '?')}: {told}")
    return lines


def read_figures(row: Figures, data: Mapping[str, Any]) -> None:
    """Fill a row from an `evaluation` event or from a stage of `report.json`: they have the same shape."""
    row.held_out_zh = share(data, "attack_success", "held_out", "zh")
    row.held_out_en = share(data, "attack_success", "held_out", "en")
    cards = [share(data, "attack_success", "held_out_cards", language) for language in ("zh", "en")]
    known = [value for value in cards if value is not None]
    row.held_out_cards = sum(known) / len(known) if known else None
    row.over_refusal = share(data, "over_refusal")
    row.helpful = share(data, "benign_helpful")
    row.agreement = share(data, "agreement")
    row.both_consistent = share(data, "both_consistent")
    row.broken = share(data, "broken")
    if isinstance(data.get("round"), Mapping):
        _read_round(row, data["round"])
    if isinstance(data.get("gate"), Mapping):
        row.gate = told_gate(data["gate"])


def share(data: Mapping[str, Any], *path: str) -> float | None:
    """The value of the measure at `path`, or None where there is none."""
    found: Any = data
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping) and {"zh", "en"} <= found.keys() and "value" not in found:
        found = found.get("mean")
    return _number(found.get("value") if isinstance(found, Mapping) else found)


def _read_round(row: Figures, data: Mapping[str, Any]) -> None:
    if data.get("num_attacks") is not None and data.get("num_valid") is not None:
        row.valid = f"{data['num_valid']}/{data['num_attacks']}"
    success = share(data, "attacker_success")
    row.attacker_success = success if success is not None else row.attacker_success
    if data.get("num_pairs") is not None:
        row.pairs = int(data["num_pairs"])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
