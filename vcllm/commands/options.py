"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="VCLLM_GATEWAY_URL", help="The gateway; default: the one running here."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", help="API key; default: VCLLM_API_KEY, or the one made on this machine."),
]
