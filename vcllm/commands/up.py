"""`vcllm up`: all services on this machine, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from vcllm.commands.display import open_console
from vcllm.commands.session import interruptible
from vcllm.launch.credentials import load_credentials
from vcllm.launch.local_key import local_key
from vcllm.launch.replicas import parse_scale
from vcllm.settings import Settings


def up(
    scale: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Several servers of a role, such as actor=2."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the gateway listens.")] = 8080,
) -> None:
    """Run all services on this machine until Ctrl-C, with a private Redis unless VCLLM_REDIS_URL is set."""
    # Imported here: the other commands also run where the launcher is not installed.
    from vcllm.launch.fleet import Fleet

    console = open_console()
    settings = Settings()
    counts = parse_scale(scale or [])
    with interruptible(console, "") as session:
        console.print("Starting the services; this takes a moment.")
        with Fleet(settings, scale=counts, port=port, say=console.print) as fleet:
            with fleet.redis() as redis:
                local_key(settings.home, redis, load_credentials(settings).pepper)
            fleet.wait_until_up()
            console.print("[bold]VC-LLM is up.[/bold]")
            for replica in fleet.replicas:
                where = replica.url if replica.port is not None else "running"
                console.print(f"  {replica.name:<18}{where}", highlight=False)
            console.print(
                f"Logs are in {fleet.home / 'log'}. `vcllm chat` talks to the model. Ctrl-C stops everything."
            )
            session.serving = True
            fleet.watch()
