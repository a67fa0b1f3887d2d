"""The API key of whoever sits at this machine: made once, kept under `var/secrets`."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from redis import Redis

from vcllm.contracts.keys import Scope
from vcllm.contracts.problems import Unauthenticated
from vcllm.launch.credentials import DEMO_KEY, read_secret, write_secret
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.audit import AuditLog

SCOPES = [Scope.CHAT, Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.REVIEW]


def local_key(home: Path, redis: Redis, pepper: SecretStr) -> str:
    """The kept key where the store still knows it and it may do all it should, else a new one."""
    store = KeyStore(redis, pepper)
    key = read_secret(home, DEMO_KEY)
    if key is not None:
        try:
            if set(SCOPES) <= set(store.find(key).scopes):
                return key
        except Unauthenticated:
            pass  # Redis was emptied, or the pepper changed: the old key opens nothing any more
    with AuditLog(redis).deed("launcher", "key of this machine") as doing:
        key, record = store.create("this machine", SCOPES)
        doing.target = record.id
    write_secret(home, DEMO_KEY, key)
    return key
