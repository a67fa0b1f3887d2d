"""`vcllm secrets`: the `.env` file that docker compose reads, made once."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

from vcllm.commands.display import open_console

NAMES = ("VCLLM_INTERNAL_TOKEN", "VCLLM_PEPPER", "REDIS_PASSWORD")


def secrets() -> None:
    """Write `.env` with fresh secrets for docker compose; an old one is kept, and what it lacks is added."""
    console = open_console()
    file = Path(".env")
    there = file.read_text().splitlines() if file.exists() else []
    known = {line.partition("=")[0].strip() for line in there}
    missing = [name for name in NAMES if name not in known]
    if not missing:
        console.print(".env has all secrets already.")
        return
    lines = [*there, *(f"{name}={token_hex(32)}" for name in missing)]
    with open(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
        out.write("\n".join(lines) + "\n")
    file.chmod(0o600)
    console.print(f".env now has {', '.join(missing)}. Keep it to yourself.", highlight=False)
