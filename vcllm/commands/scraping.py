"""`vcllm scrape-token`: what Prometheus sends to read metrics."""

from __future__ import annotations

import typer
from pydantic import SecretStr

from vcllm.commands.errors import CommandError
from vcllm.launch.credentials import read_secret
from vcllm.settings import Settings
from vcllm.web.tokens import scrape_token


def show_scrape_token() -> None:
    """Show the token that opens `/metrics` of every service, and nothing else; it follows from the internal token."""
    settings = Settings()
    secret = settings.internal_token.get_secret_value() or read_secret(settings.home, "internal_token")
    if not secret:
        raise CommandError("There is no internal token here yet. `vcllm up` makes one, or set VCLLM_INTERNAL_TOKEN.")
    typer.echo(scrape_token(SecretStr(secret)))
