"""Whose a training run's folder is: the newest holder of its job may write there, nobody who held it before.

A lease tells supervisors apart, but the process of a supervisor that is stopped goes on. So each supervisor writes its
fencing token into the folder, and its process looks there before it writes anything.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from vcllm.contracts.runs import HOLDER, TOKEN_VARIABLE
from vcllm.stores.models import write_atomic


class Fenced(Exception):
    """The folder belongs to a newer holder: write nothing, end."""


def claim_folder(folder: Path, token: int, job: str) -> None:
    """From now on the folder belongs to `token`, also against processes that still run; Fenced when a newer has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{HOLDER}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (holder := folder_token(folder)) is not None and holder > token:
            raise Fenced(f"{folder} belongs to a newer run.")
        write_atomic(folder / HOLDER, json.dumps({"token": token, "job": job}).encode())


def confirm_folder(folder: Path, token: int | None = None) -> None:
    """Fenced unless the folder still belongs to `token`; called by a run before every write.

    token: None: what the run was started with; a run that was started by hand has none, and may write.
    """
    if token is None:
        if (told := os.environ.get(TOKEN_VARIABLE)) is None:
            return
        token = int(told)
    if folder_token(folder) != token:
        raise Fenced(f"{folder} belongs to another run.")


def folder_token(folder: Path) -> int | None:
    """The token of the holder, None when the folder is nobody's (or was emptied for another order)."""
    try:
        return int(json.loads((folder / HOLDER).read_text())["token"])
    except FileNotFoundError:
        return None
