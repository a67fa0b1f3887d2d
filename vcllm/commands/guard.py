"""`vcllm guard`: what stands between a key's chats and an Actor, and how often its Critic is wrong."""

from __future__ import annotations

import typer
from rich.table import Table

from vcllm.commands.api import open_api
from vcllm.commands.display import open_console
from vcllm.commands.options import Key, Url
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.guard import GuardFigures, GuardReply

app = typer.Typer(no_args_is_help=True, help="The guard: the Critic between an answer and its reader.")


@app.callback()
def guards() -> None:
    """The guard."""


@app.command()
def show(url: Url = None, key: Key = None) -> None:
    """Mode, stages and Critic for this key, with the miss and false-block rates of the last report."""
    with open_api(url, key) as api:
        guard = GuardReply.model_validate(api.get("/v1/guard"))
    console = open_console()
    console.print(facts_of(guard))
    if guard.note:
        console.print(guard.note, highlight=False, markup=False, soft_wrap=True)
    if guard.figures is not None:
        console.print(rates_of(guard.figures))


def facts_of(guard: GuardReply) -> Table:
    hold = "the whole answer" if guard.hold_back == "whole" else f"{guard.hold_back} characters"
    where = "" if guard.stage is None else f" on answers of {guard.stage}"
    table = Table(show_header=False)
    for name, value in (
        ("mode", f"{guard.mode} (the charter's is {guard.charter_mode})"),
        ("policy", guard.policy),
        ("asked", ", ".join(guard.stages)),
        ("when it cannot be judged", guard.on_outage),
        ("threshold", f"{guard.threshold:g}"),
        ("a stream holds back", hold),
        ("critic", guard.critic_version or "none"),
        ("misses", told_rate(guard.miss) + where),
        ("blocks falsely", told_rate(guard.false_block) + where),
    ):
        table.add_row(name, value)
    return table


def rates_of(figures: GuardFigures) -> Table:
    """At every threshold: what a stricter or laxer one would do."""
    table = Table("threshold", *(f"{stage.stage}: {what}" for stage in figures.stages for what in ("misses", "blocks")))
    table.title = f"Critic {figures.critic} in the last report"
    for rates in zip(*(stage.rates for stage in figures.stages), strict=True):
        told = [told_rate(measure) for rate in rates for measure in (rate.miss, rate.false_block)]
        table.add_row(f"{rates[0].threshold:g}", *told)
    return table


def told_rate(measure: Measure | None) -> str:
    """With its 95 % interval and n."""
    if measure is None or measure.value is None or measure.low is None or measure.high is None:
        return "not measured"
    span = f"{100 * measure.low:.1f}-{100 * measure.high:.1f} %"
    return f"{100 * measure.value:.1f} % ({span}, n = {measure.n})"
