"""`vcllm jobs`: queue, follow, pause, stop and resume training jobs."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vcllm.commands.api import Api, open_api
from vcllm.commands.board import Board
from vcllm.commands.display import TableMaker, display_for, open_console
from vcllm.commands.errors import CommandError
from vcllm.commands.options import Key, Url

app = typer.Typer(no_args_is_help=True, help="Queue, follow, pause, stop and resume training jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id; `vcllm jobs list` shows them.")]


@app.command()
def create(
    recipe: Annotated[str, typer.Option(help="A recipe the gateway knows.")],
    stage: Annotated[str | None, typer.Option(help="Run this stage alone.")] = None,
    lineage: Annotated[str | None, typer.Option(help="Where versions and pairs belong.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the recipe's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Queue a pipeline, or one stage of it."""
    console = open_console()
    body = {"recipe": recipe, "stage": stage, "lineage": lineage, "seed": seed, "validate_only": dry_run}
    with open_api(url, key) as api:
        reply = api.post("/v1/jobs", body, {"Idempotency-Key": uuid.uuid4().hex})
        if dry_run:
            console.print(f"{recipe} would run: {', '.join(reply.get('stages', []))}.")
            return
        console.print(f"{reply['id']} is {reply['state']}.", highlight=False)
        if watch:
            follow(api, reply["id"], console)


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    parent: Annotated[str | None, typer.Option(help="Only the stages of this job.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """The newest jobs."""
    with open_api(url, key) as api:
        records = api.get("/v1/jobs", limit=limit, parent=parent)["data"]
    table = Table("job", "what", "state", "created", "took")
    for record in records:
        table.add_row(record["id"], _what(record), record["state"], _when(record["created"]), _took(record))
    open_console().print(table if records else "There are no jobs yet. `vcllm jobs create --recipe NAME` queues one.")


@app.command()
def get(job: JobId, url: Url = None, key: Key = None) -> None:
    """Everything known of a job, as JSON."""
    with open_api(url, key) as api:
        open_console().print_json(data=api.get(f"/v1/jobs/{job}"))


@app.command()
def watch(job: JobId, url: Url = None, key: Key = None) -> None:
    """Follow a job to its end; Ctrl-C stops the watching, not the job."""
    with open_api(url, key) as api:
        follow(api, job, open_console())


@app.command()
def cancel(job: JobId, url: Url = None, key: Key = None) -> None:
    """Stop a job; what it has finished is kept."""
    with open_api(url, key) as api:
        record = api.post(f"/v1/jobs/{job}/cancel")
    open_console().print(f"{job} is {record['state']}.", highlight=False)


@app.command()
def pause(job: JobId, url: Url = None, key: Key = None) -> None:
    """Stop a job at a checkpoint, so that it uses nothing until it is resumed."""
    with open_api(url, key) as api:
        record = api.post(f"/v1/jobs/{job}/pause")
    open_console().print(f"{job} is {record['state']}.", highlight=False)


@app.command()
def resume(job: JobId, url: Url = None, key: Key = None) -> None:
    """Queue a failed or paused job again; it goes on from its last checkpoint."""
    with open_api(url, key) as api:
        record = api.post(f"/v1/jobs/{job}/resume")
    open_console().print(f"{job} is {record['state']}.", highlight=False)


@app.command()
def ledger(
    lineage: Annotated[str, typer.Argument(help="A lineage, or a job's id.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Is every approved pair used exactly once? Compares stream, ledger and manifests; exit code 1 when not."""
    with open_api(url, key) as api:
        if lineage.startswith("job-"):
            lineage = _lineage(api.get(f"/v1/jobs/{lineage}"))
        counts = api.get(f"/v1/pairs/{lineage}")
    open_console().print(
        f"{lineage}: {counts['used']} pairs used, each by one version; {counts['waiting']} waiting;"
        f" {counts['dead']} given up.",
        highlight=False,
    )
    if counts["faults"]:
        raise CommandError("the books do not agree: " + "; ".join(counts["faults"][:10]))


def follow(api: Api, job_id: str, console: Console, table: TableMaker | None = None) -> Board:
    """Show a job until it has finished; CommandError when it failed or was cancelled.

    table: see `display_for`.
    """
    board = Board()
    with display_for(console, table) as display:
        for event in api.events(job_id):
            board.take(event)
            display.show(board)
    check_outcome(board, job_id)
    return board


def check_outcome(board: Board, job_id: str) -> None:
    """CommandError unless the job succeeded."""
    if board.state == "failed":
        raise CommandError(f"{job_id} failed: {board.error or 'it left no reason'}")
    if board.state == "cancelled":
        raise CommandError(f"{job_id} was cancelled.")


def _what(record: dict[str, Any]) -> str:
    request = record["request"]
    if record["kind"] == "stage":
        return f"{request.get('recipe', '')}: {request.get('version', '')}"
    if record["kind"] == "fine_tune":
        return f"fine-tune: {request.get('order', {}).get('version', '')}"
    stage = request.get("stage")
    return f"{request.get('recipe', '')}{f', stage {stage}' if stage else ''}"


def _lineage(record: dict[str, Any]) -> str:
    name = record["request"].get("lineage") or record.get("result", {}).get("lineage")
    if not name:
        raise CommandError(f"{record['id']} does not say which lineage it worked on; name the lineage itself.")
    return str(name)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _took(record: dict[str, Any]) -> str:
    started = record.get("started")
    if not started:
        return ""
    return f"{(record.get('finished') or time.time()) - started:.0f} s"
