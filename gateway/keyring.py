"""API keys as the gateway knows them: found by the digest of the whole key, remembered for some seconds."""

from __future__ import annotations

import hashlib
import re
import time
from functools import partial

from gateway.lookups import Lookups
from vcllm.contracts.keys import KeyRecord
from vcllm.contracts.problems import Unauthenticated
from vcllm.stores.api_keys import KeyStore, refuse_expired

_SHAPE = re.compile(r"vck_[0-9a-f]{8,16}_[A-Za-z0-9_-]{32,128}")


class KeyRing:
    """The key store with a memory; no key is kept in it, only digests."""

    def __init__(self, store: KeyStore, ttl_s: float, grace_s: float) -> None:
        self.store = store
        self.used: dict[str, float] = {}
        """Key id to the Unix second it was last used; for one event loop."""
        self._records: Lookups[KeyRecord] = Lookups(ttl_s, grace_s)

    async def find(self, key: str) -> KeyRecord:
        """The record of a key; Unauthenticated when it is unknown, revoked or expired."""
        if not _SHAPE.fullmatch(key):
            raise Unauthenticated("This is not an API key of this service: those begin with `vck_`.")
        name = hashlib.sha256(key.encode()).hexdigest()
        record = refuse_expired(await self._records.get(name, partial(self.store.find, key)))
        self.used[record.id] = time.time()
        return record

    def forget(self, *key_ids: str) -> None:
        """Keys that were changed, revoked or rotated here are looked up again."""
        self._records.forget(lambda record: record.id in key_ids)
