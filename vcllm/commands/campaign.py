"""`vcllm campaign`: start, watch, pause, stop and read the adversarial rounds of a lineage."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from vcllm.commands.api import Api, open_api
from vcllm.commands.board import Board
from vcllm.commands.campaign_tables import campaign_facts, detail_tables, rounds_table
from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError
from vcllm.commands.jobs import follow
from vcllm.commands.options import Key, Url
from vcllm.contracts.campaigns import Campaign
from vcllm.contracts.jobs import JobState
from vcllm.stores.models import write_atomic

app = typer.Typer(no_args_is_help=True, help="Start, watch, pause and stop adversarial rounds.")

LineageName = Annotated[
    str, typer.Argument(metavar="LINEAGE", help="A campaign's name, that of its lineage; see the list.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The gateway's reply, as JSON.")]

STOPPING = {
    JobState.QUEUED: "it waits in the queue; once it comes to its rounds it begins no further one, and reports",
    JobState.PAUSED: "it is paused; resume it, and it ends its rounds and reports; abort ends it as it is",
    JobState.FAILED: "it has failed; resume it, and it ends its rounds and reports",
}
RUNNING_STOP = "the round in progress is its last one; the report follows"


@app.command()
def start(
    recipe: Annotated[str, typer.Argument(help="A recipe the gateway knows.")],
    lineage: Annotated[str | None, typer.Option(help="Its name. Default: made from recipe, seed and charter.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the recipe's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Queue a recipe's whole pipeline, from its base over the rounds to the report."""
    console = open_console()
    body = {"recipe": recipe, "lineage": lineage, "seed": seed, "validate_only": dry_run}
    with open_api(url, key) as api:
        reply = api.post("/v1/campaigns", body, {"Idempotency-Key": uuid.uuid4().hex})
        if as_json:
            console.print_json(data=reply)
        elif dry_run:
            console.print(f"{reply['lineage']} would run: {', '.join(reply['stages'])}.", highlight=False)
        else:
            _say_state(console, reply)
        if watch and not dry_run:
            _follow(api, Campaign.model_validate(reply), console)


@app.command("list")
def list_campaigns(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """The newest campaigns."""
    with open_api(url, key) as api:
        reply = api.get("/v1/campaigns", limit=limit)
    console = open_console()
    if as_json:
        console.print_json(data=reply)
        return
    if not reply["data"]:
        console.print("There are no campaigns yet. `vcllm campaign start RECIPE` starts one.")
        return
    table = Table("campaign", "recipe", "state", "stage", "waits for people", "created", box=box.SIMPLE_HEAD)
    for one in map(Campaign.model_validate, reply["data"]):
        created = time.strftime("%m-%d %H:%M", time.localtime(one.created))
        table.add_row(one.lineage, one.recipe, _told_state(one), one.stage or "", _told_waiting(one), created)
    console.print(table)


@app.command()
def show(
    lineage: LineageName,
    detail: Annotated[bool, typer.Option("--detail", help="Pairs, archive, time and steering of every round, too.")] = (
        False
    ),
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Where it stands, and a line for every round."""
    with open_api(url, key) as api:
        reply = api.get(f"/v1/campaigns/{lineage}")
    console = open_console()
    if as_json:
        console.print_json(data=reply)
        return
    campaign = Campaign.model_validate(reply)
    console.print(campaign_facts(campaign))
    if not campaign.rounds:
        console.print("No round is done yet.", style="dim")
        return
    console.print(rounds_table(campaign.rounds))
    for table in detail_tables(campaign.rounds) if detail else ():
        console.print(table)


@app.command()
def watch(lineage: LineageName, url: Url = None, key: Key = None) -> None:
    """Follow it to its end, with the table of its rounds; Ctrl-C stops the watching, not the campaign."""
    with open_api(url, key) as api:
        _follow(api, Campaign.model_validate(api.get(f"/v1/campaigns/{lineage}")), open_console())


@app.command()
def pause(lineage: LineageName, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Stop it at a checkpoint, so that it uses nothing until it is resumed."""
    _ask("pause", lineage, as_json, url, key)


@app.command()
def resume(lineage: LineageName, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Queue a paused or failed campaign again; it goes on where it was."""
    _ask("resume", lineage, as_json, url, key)


@app.command()
def stop(lineage: LineageName, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Let the round in progress be the last; the report follows."""
    _ask("stop", lineage, as_json, url, key)


@app.command()
def abort(lineage: LineageName, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """End it now, without a report; what is done is kept."""
    _ask("abort", lineage, as_json, url, key)


@app.command()
def archive(
    lineage: LineageName,
    output: Annotated[Path | None, typer.Option(help="A file to write. Default: the terminal.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """The archive after the last round, as JSON: every cell, its winning attacks, and how attempts went."""
    with open_api(url, key) as api:
        found = api.get(f"/v1/campaigns/{lineage}/archive")
    text = json.dumps(found, ensure_ascii=False, indent=2)
    if output is None:
        typer.echo(text)
        return
    write_atomic(output, f"{text}\n".encode())
    said = f"{output}: {len(found['cells'])} cells after round {found['round']}."
    open_console().print(said, markup=False, highlight=False)


class RoundsView:
    """The table of a campaign, fetched again whenever one of its stages is over."""

    def __init__(self, api: Api, lineage: str) -> None:
        self.api, self.lineage = api, lineage
        self._num_over: int | None = None
        self._table: Table | None = None

    def __call__(self, board: Board) -> RenderableType | None:
        num_over = sum(line.is_over for line in board.stages.values())
        if num_over == self._num_over:
            return self._table
        try:
            campaign = Campaign.model_validate(self.api.get(f"/v1/campaigns/{self.lineage}"))
        except CommandError:
            return self._table  # the gateway is away for a moment: the next event asks again
        self._num_over = num_over
        self._table = rounds_table(campaign.rounds) if campaign.rounds else None
        return self._table


def _follow(api: Api, campaign: Campaign, console: Console) -> None:
    follow(api, campaign.job, console, RoundsView(api, campaign.lineage))


def _ask(what: str, lineage: str, as_json: bool, url: str | None, key: str | None) -> None:
    with open_api(url, key) as api:
        reply = api.post(f"/v1/campaigns/{lineage}/{what}")
    console = open_console()
    if as_json:
        console.print_json(data=reply)
    else:
        _say_state(console, reply)


def _say_state(console: Console, reply: dict[str, Any]) -> None:
    one = Campaign.model_validate(reply)
    said = f"{one.lineage} is {one.state}."
    if one.stopping:
        said = f"{one.lineage} was told to stop: {STOPPING.get(one.state, RUNNING_STOP)}."
    console.print(said, markup=False, highlight=False)


def _told_state(campaign: Campaign) -> str:
    return f"{campaign.state}, stopping" if campaign.stopping else campaign.state.value


def _told_waiting(campaign: Campaign) -> str:
    held = f"{len(campaign.held)} held" if campaign.held else ""
    answers = f"{campaign.reviews} answers" if campaign.reviews else ""
    return ", ".join(part for part in (held, answers) if part)
