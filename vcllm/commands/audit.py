"""`vcllm audit`: read, check and copy the log of who did what, next to the Redis that holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from redis import Redis
from rich.table import Table

from vcllm.commands.api import read_fleet
from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError
from vcllm.contracts.audit import Anchor, AuditEntry, Outcome, parse_anchor
from vcllm.settings import Settings
from vcllm.stores.audit import AuditLog, Doing
from vcllm.stores.audit_chain import ChainCheck, check_chain
from vcllm.stores.audit_copy import copy_of, end_of_copy, extend_copy, lines_of
from vcllm.stores.connect import open_redis

app = typer.Typer(no_args_is_help=True, help="Who did what: read it, check that nothing was changed, keep a copy.")


@app.command()
def verify(
    anchor: Annotated[
        list[str] | None,
        typer.Option(metavar="SEQ:HASH", help="How far the log went once, as noted then; repeat for more."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Check this copy instead of the log; needs no Redis.")] = None,
) -> None:
    """Walk the whole chain. Exit status 1 and the first bad entry when anything was changed, removed or cut off.

    The copy on this machine is compared as well, where there is one. A log that was made anew from its beginning, or
    cut together with its head, shows only against a copy or an anchor.
    """
    noted = [_anchor(text) for text in anchor or []]
    if file is not None:
        if not file.is_file():
            raise CommandError(f"There is no file {file}.")
        check = check_chain(lines_of(file), anchors=noted)
    else:
        with audit_log() as log:
            kept = end_of_copy(copy_of(Settings().home))
            check = log.check(*noted, *([kept] if kept else []))
    _tell(check)


@app.command("list")
def list_entries(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest.")] = 30,
    actor: Annotated[str | None, typer.Option(help="Only of this key's id, or of this service.")] = None,
    action: Annotated[str | None, typer.Option(help="Only actions with this in them, such as `cancel`.")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
) -> None:
    """The newest entries, the latest last. What began and has ended is one line."""
    with audit_log() as log:
        entries = _newest(log, limit, actor, action, refused)
    table = Table("entry", "when", "who", "did", "to", "outcome", "request")
    for entry in reversed(entries):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time))
        outcome = entry.outcome if entry.status is None else f"{entry.outcome} {entry.status}"
        outcome += f" (and {entry.withheld} more)" if entry.withheld else ""
        who, target, request = entry.actor or "nobody", entry.target or "", entry.request or ""
        table.add_row(str(entry.seq), when, who, entry.action, target, outcome, request)
    open_console().print(table if entries else "There is no such entry.")


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="Default: audit/audit.jsonl under the home.")] = None,
) -> None:
    """Append to a copy what it lacks, one entry a line; refused when the log does not go on from its end."""
    target = file or copy_of(Settings().home)
    with audit_log() as log:
        end = extend_copy(log, target)
    open_console().print(f"{target} has {end.seq} entries. Anchor: {end}", highlight=False, soft_wrap=True)


def operator_deed(redis: Redis, action: str, target: str | None = None) -> AbstractContextManager[Doing]:
    """For a command that changes something beside the gateway; it is entered as done by whoever runs it here."""
    return AuditLog(redis).deed(f"operator:{os.getuid()}", action, target)


@contextmanager
def audit_log() -> Iterator[AuditLog]:
    """The log of what runs on this machine; CommandError where nothing does."""
    settings = Settings()
    url = settings.redis_url if "redis_url" in settings.model_fields_set else read_fleet(settings.home).get("redis")
    if url is None:
        raise CommandError("No VC-LLM is running here. Start it with `vcllm up`, or set VCLLM_REDIS_URL.")
    with open_redis(url, patience=1) as redis:
        yield AuditLog(redis)


def _newest(log: AuditLog, limit: int, actor: str | None, action: str | None, refused: bool) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    ended: set[int] = set()
    before: int | None = None
    while len(found) < limit and (page := log.recent(500, before)):
        before = page[-1].seq
        for entry in page:
            if entry.of is not None:
                ended.add(entry.of)
            wanted = actor in (None, entry.actor) and (action or "") in entry.action
            wanted = wanted and (not refused or entry.outcome is Outcome.REFUSED)
            if wanted and entry.seq not in ended:
                found.append(entry)
    return found[:limit]


def _anchor(text: str) -> Anchor:
    try:
        return parse_anchor(text)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _tell(check: ChainCheck) -> None:
    console = open_console()
    if check.fault is None:
        console.print(f"All {check.sound.seq} entries follow each other, none was changed.", highlight=False)
        console.print(f"Anchor: {check.sound}", highlight=False, soft_wrap=True)
        return
    console.print(f"Entry {check.at}: {check.fault}.", style="red", highlight=False, markup=False, soft_wrap=True)
    console.print("What comes before it is as it was written. Keep the log and its copies as they are.", soft_wrap=True)
    console.print(f"Sound up to: {check.sound}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
