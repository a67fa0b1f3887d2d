"""The first API key: made when a gateway starts and there is none, for whoever may read its folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vcllm.contracts.keys import Scope
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.audit import AuditLog
from vcllm.stores.connect import FIRST_KEY
from vcllm.stores.models import write_private

log = logging.getLogger(__name__)

NAME = "first start"
MAKING_S = 30
"""How long other gateways leave the making to one that has begun."""


def first_key_file(home: Path) -> Path:
    return home / "secrets" / "admin_key"


def make_first_key(keys: KeyStore, home: Path) -> str | None:
    """A sentence that says where the new admin key is, or how to make one; None: there are keys already.

    Of several gateways that start at once, one makes it. Redis errors pass through.
    """
    if keys.all() or not keys.redis.set(FIRST_KEY, os.getpid(), nx=True, ex=MAKING_S):
        return None
    try:
        return None if keys.all() else _make(keys, first_key_file(home))
    finally:
        keys.redis.delete(FIRST_KEY)


def _make(keys: KeyStore, file: Path) -> str:
    """The file is tried first: a key that nobody can read would keep another from being made."""
    try:
        write_private(file, "")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return (
            f"There is no API key yet, and none can be left in {file} ({reason}). Make one here with"
            " `python -m vcllm.cli keys create NAME --scope admin`."
        )
    with AuditLog(keys.redis).deed("gateway", "first key") as doing:
        key, record = keys.create(NAME, [Scope.ADMIN])
        doing.target = record.id
        try:
            write_private(file, key)
        except OSError:
            keys.revoke(record.id)
            raise
    return f"There was no API key yet. One for administrators, {record.id}, is in {file}: keep it, or move it away."
