"""`vcllm secrets`: the files under `secrets/` that containers read, made once.

Compose mounts each file as it is, owner and mode included, into containers that run as accounts which this machine
need not know. So the folder keeps everybody else out, and the files in it may be read by whoever gets them mounted.
"""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex
from typing import Annotated

import typer
from pydantic import SecretStr

from vcllm.commands.display import open_console
from vcllm.web.tokens import scrape_token

FOLDER = Path("secrets")
SCRAPE_TOKEN = "scrape_token"
VARIABLES = {
    "internal_token": "VCLLM_INTERNAL_TOKEN",
    "pepper": "VCLLM_PEPPER",
    "redis_password": "REDIS_PASSWORD",
    "vllm_api_key": "VLLM_API_KEY",
}
"""Each file with the name its secret had in `.env`, where earlier versions kept them. The last is for vLLM only."""


def secrets(
    folder: Annotated[Path, typer.Option(help="Where the files go; compose looks in `secrets`.")] = FOLDER,
) -> None:
    """Write fresh secrets for docker compose; those that are there are kept, those in an old `.env` are taken over."""
    console = open_console()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    missing = [name for name in VARIABLES if not _is_there(folder / name)]
    old = _read_env(Path(".env"))
    for name in missing:
        _write(folder / name, old.get(VARIABLES[name]) or token_hex(32))
    # Not a secret of its own: it follows from the internal token, and is for Prometheus to read.
    token = SecretStr((folder / "internal_token").read_text().strip())
    _write(folder / SCRAPE_TOKEN, scrape_token(token))
    if missing:
        console.print(f"{folder}/ now has {', '.join(missing)}. Keep the folder to yourself.", highlight=False)
    else:
        console.print(f"{folder}/ has all secrets already.", highlight=False)
    if left := [variable for variable in VARIABLES.values() if variable in old]:
        console.print(f".env need not hold {', '.join(left)} any more: remove these lines.", highlight=False)


def _read_env(file: Path) -> dict[str, str]:
    """Variable to value. What it says goes on to hold: another pepper would make every API key useless."""
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def _is_there(file: Path) -> bool:
    """Also makes sure of the mode: a copy made under another umask could not be read in a container."""
    if not file.is_file() or not file.read_text().strip():
        return False
    file.chmod(0o444)
    return True


def _write(file: Path, secret: str) -> None:
    """All of it or nothing: an interrupted first run must not leave half a secret."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(secret + "\n")
    part.chmod(0o444)
    part.replace(file)
