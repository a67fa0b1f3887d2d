"""`vcllm models`: which versions there are, the way back, and what to do with those that the gate held."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from vcllm.commands.api import open_api
from vcllm.commands.display import open_console
from vcllm.commands.model_import import import_model
from vcllm.commands.options import Key, Url
from vcllm.contracts.gates import Gated

app = typer.Typer(no_args_is_help=True, help="See, decide on and roll back model versions.")

Version = Annotated[str, typer.Argument(help="`vcllm models held` shows it.")]
Note = Annotated[str, typer.Option(help="Why; kept with the decision.")]


app.command("import")(import_model)


@app.command("list")
def list_models(url: Url = None, key: Key = None) -> None:
    """Versions that this key may use, newest first."""
    with open_api(url, key) as api:
        cards = api.get("/v1/models")["data"]
    table = Table("model", "alias", "made from", "created")
    for card in cards:
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(card["created"])) if card.get("created") else ""
        table.add_row(card["id"], ", ".join(card.get("alias") or []), card.get("parent") or "", created)
    open_console().print(
        table if cards else "There is no promoted version yet. `vcllm jobs create --recipe NAME` trains one."
    )


@app.command()
def servers(url: Url = None, key: Key = None) -> None:
    """What each model server serves, and why it does not serve what it should. Needs the scope models:promote."""
    with open_api(url, key) as api:
        reports = api.get("/v1/servers")["data"]
    table = Table("role", "server", "serves", "should serve", "why not")
    for report in reports:
        why = report["reason"] or ("It is being loaded." if report["pending"] else "")
        why = f"Refused: {why}" if report["refused"] else why
        table.add_row(report["role"], report["server"], report["current"] or "", report["pending"] or "", why)
    open_console().print(table if reports else "No model server has reported in the last seconds.")


@app.command()
def rollback(
    role: Annotated[str, typer.Option(help="attacker, actor or critic.")] = "actor",
    url: Url = None,
    key: Key = None,
) -> None:
    """Serve the previous version again. Needs a key with the scope models:promote."""
    with open_api(url, key) as api:
        reply = api.post("/v1/models/rollback", {"role": role})
    open_console().print(
        f"{role}: {reply['current']} is current again, instead of {reply['previous']}.", highlight=False
    )


@app.command()
def held(url: Url = None, key: Key = None) -> None:
    """Candidates that the gate left to a person, and what is open. Needs the scope models:promote."""
    with open_api(url, key) as api:
        records = [Gated.model_validate(one) for one in api.get("/v1/models/held")["data"]]
    table = Table("version", "measured against", "since", "what is open")
    for record in records:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.judged))
        unsettled = [f"{check.name}: {check.detail}" for check in record.verdict.checks if check.open]
        table.add_row(record.candidate, record.parent, since, Text("\n".join(unsettled)))
    open_console().print(table if records else "No candidate waits for a decision.")


@app.command()
def promote(
    version: Version,
    replaces: Annotated[
        str | None,
        typer.Option(help="What is current now, where that is not the version it was measured against."),
    ] = None,
    note: Note = "",
    url: Url = None,
    key: Key = None,
) -> None:
    """Serve a candidate that the gate held. Needs a key with the scope models:promote."""
    with open_api(url, key) as api:
        api.post(f"/v1/models/{version}/promote", {"note": note, "replaces": replaces})
    open_console().print(f"{version} is current now. `vcllm models rollback` takes that back.", highlight=False)


@app.command()
def reject(version: Version, note: Note = "", url: Url = None, key: Key = None) -> None:
    """Never serve a candidate that the gate held. Needs a key with the scope models:promote."""
    with open_api(url, key) as api:
        api.post(f"/v1/models/{version}/reject", {"note": note})
    open_console().print(f"{version} will not be served.", highlight=False)
