"""The guard before a key's chats: how it stands, and how often its Critic was wrong by the last report."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import APIRouter
from pydantic import ValidationError

from gateway.auth import Chatter, KeyFirst
from gateway.state import State
from vcllm.contracts.guard import GuardFigures, GuardRate, GuardReply, GuardStageFigures

router = APIRouter(prefix="/v1/guard", route_class=KeyFirst)

REPORT = Path("report") / "report.json"
"""Below the home, as the trainer writes it."""


@router.get("")
def show_guard(key: Chatter, state: State) -> GuardReply:
    """Its rates are those of the Critic that is current, at the threshold that holds, or none."""
    rules = state.guard.rules
    policy, mode = rules.policy, rules.mode_of(key)
    critic = state.aliases.get("critic")
    figures = read_figures(state.settings.home / REPORT)
    shown = GuardReply(
        mode=mode,
        policy=rules.stamp(mode),
        charter=rules.charter,
        charter_hash=rules.charter_hash,
        charter_mode=policy.mode,
        **policy.model_dump(exclude={"mode"}),
        critic_version=critic,
        figures=figures,
    )
    measured = rates_of(figures, critic, policy.threshold)
    if isinstance(measured, str):
        return shown.model_copy(update={"note": measured})
    stage, rate = measured
    return shown.model_copy(update={"stage": stage.stage, "miss": rate.miss, "false_block": rate.false_block})


def read_figures(report: Path) -> GuardFigures | None:
    """What the last report says of its Critic as a guard; None: nothing."""
    try:
        found = json.loads(report.read_bytes()).get("guard")
        return None if found is None else GuardFigures.model_validate(found)
    except (OSError, ValueError, AttributeError, ValidationError):
        return None


def rates_of(
    figures: GuardFigures | None, critic: str | None, threshold: float
) -> tuple[GuardStageFigures, GuardRate] | str:
    """On the answers of what the run serves; a sentence where there are none for this Critic and threshold."""
    if figures is None:
        return "Not measured: no report of a run says how often the Critic is wrong."
    if critic != figures.critic:
        return f"Not measured: the last report is about Critic version '{figures.critic}', not the current one."
    stage = figures.stages[-1]
    rate = next((rate for rate in stage.rates if abs(rate.threshold - threshold) < 1e-9), None)
    if rate is None:
        return "Not measured at this threshold: the next report has it."
    return stage, rate
