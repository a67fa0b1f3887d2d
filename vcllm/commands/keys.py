"""`vcllm keys`: make, list and revoke API keys, next to the Redis that holds them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vcllm.commands.api import read_fleet
from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError
from vcllm.contracts.keys import Scope
from vcllm.launch.credentials import load_credentials
from vcllm.settings import Settings
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.connect import open_redis

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key this is.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; repeat for more. Default: chat.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Expires after this many days. Default: never.")] = None,
) -> None:
    """Make a key. It is shown this once: only its keyed hash is kept."""
    with key_store() as store:
        key, record = store.create(name, scope or [Scope.CHAT], days and days * 86400)
    console = Console(stderr=True)
    console.print(f"Key {record.id} for {name} may: {', '.join(record.scopes)}. Keep it; it is not shown again.")
    typer.echo(key)


@app.command("list")
def list_keys() -> None:
    """The keys there are, without the keys themselves."""
    with key_store() as store:
        records = store.all()
    table = Table("id", "name", "may", "expires")
    for record in records:
        expires = "never" if record.expires is None else time.strftime("%Y-%m-%d", time.localtime(record.expires))
        table.add_row(record.id, record.name, ", ".join(record.scopes), expires)
    open_console().print(table if records else "There are no keys yet. `vcllm keys create NAME` makes one.")


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="`vcllm keys list` shows it.")]) -> None:
    """Make a key useless; running gateways notice within seconds."""
    with key_store() as store:
        store.revoke(key_id)
    open_console().print(f"Key {key_id} opens nothing any more.", highlight=False)


@contextmanager
def key_store() -> Iterator[KeyStore]:
    """The keys of what runs on this machine; CommandError where nothing does."""
    settings = Settings()
    url = settings.redis_url if "redis_url" in settings.model_fields_set else read_fleet(settings.home).get("redis")
    if url is None:
        raise CommandError(
            "No VC-LLM is running here. Start it with `vcllm up`, or set VCLLM_REDIS_URL and VCLLM_PEPPER."
        )
    with open_redis(url, patience=1) as redis:
        yield KeyStore(redis, load_credentials(settings).pepper)
