"""The audit log: one chain for all gateways, in a Redis stream whose ids are the sequence numbers.

An entry is appended in one step together with the log's head, and only behind the entry that it was chained to, so
that writers cannot fork the chain. It is not trimmed. Whoever may write to Redis can still build another chain: that
shows against an anchor, or a copy, that is kept elsewhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from redis import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import ResponseError

from vcllm.contracts.audit import EMPTY, Anchor, AuditEntry, Deed, Outcome, link
from vcllm.contracts.problems import Unavailable
from vcllm.stores.audit_chain import ChainCheck, check_chain
from vcllm.stores.connect import AUDIT, AUDIT_HEAD

log = logging.getLogger(__name__)

PAGE = 500
MOST_TRIES = 1000
"""Each lost try means that another writer got its entry in."""


@dataclass
class Doing:
    """A deed that has begun."""

    target: str | None
    """To be set when it is known only now, such as the id of what was made."""


class AuditLog:
    """Append and read. Thread-safe; nothing can be changed or removed through it."""

    def __init__(self, redis: Redis, *, clock: Callable[[], float] = time.time) -> None:
        self.redis: Any = redis
        self._clock = clock
        self._known: Anchor | None = None
        """The head as last seen: usually still the head."""
        self._turn = threading.Lock()

    def append(self, deed: Deed) -> AuditEntry:
        """Stored when this returns. Redis errors pass through; Unavailable when the log is damaged."""
        with self._turn:
            head = self._known or self.head()
            for _ in range(MOST_TRIES):
                entry = link(deed, head, self._clock())
                now = self._put(entry, head)
                # A command that is sent again after a lost reply finds its own entry there.
                if now is None or (now.seq, now.hash) == (entry.seq, entry.hash):
                    self._known = Anchor(seq=entry.seq, hash=entry.hash)
                    return entry
                if now.seq < head.seq:
                    log.error("The audit log was cut from entry %d back to entry %d.", head.seq, now.seq)
                head = now
        raise Unavailable("Too many entries are being written to the audit log. Try again.", retry_after_s=1)

    @contextmanager
    def deed(self, actor: str, action: str, target: str | None = None) -> Iterator[Doing]:
        """Enter a deed before it is done, and how it ended afterwards; it is not done when it cannot be entered."""
        begun = self.append(Deed(actor=actor, action=action, target=target, outcome=Outcome.BEGUN))
        doing = Doing(target)
        ended = Outcome.FAILED
        try:
            yield doing
            ended = Outcome.DONE
        finally:
            self.append(Deed(actor=actor, action=action, target=doing.target, outcome=ended, of=begun.seq))

    def head(self) -> Anchor:
        """The last entry; an anchor, when it is noted elsewhere."""
        seq, hash_ = self.redis.hmget(AUDIT_HEAD, "seq", "hash")
        return EMPTY if seq is None else Anchor(seq=int(seq), hash=hash_)

    def lines(self, after: int = 0) -> Iterator[bytes]:
        """The entries behind number `after` as they are stored, oldest first; also those that cannot be read."""
        begin = f"({after}-0" if after else "-"
        while rows := self._range("XRANGE", begin, "+", PAGE):
            yield from (line for _, line in rows)
            begin = f"({rows[-1][0]}"

    def recent(self, limit: int, before: int | None = None) -> list[AuditEntry]:
        """The newest first. Unavailable when one of them cannot be read."""
        end = "+" if before is None else f"({before}-0"
        rows = self._range("XREVRANGE", end, "-", limit)
        try:
            return [AuditEntry.model_validate_json(line) for _, line in rows]
        except ValueError as error:
            raise Unavailable("The audit log is damaged. `vcllm audit verify` says where.") from error

    def check(self, *anchors: Anchor) -> ChainCheck:
        """Walk the whole chain, with what is appended meanwhile."""
        found = check_chain(self.lines(), head=self.head(), anchors=anchors)
        if found.fault is None and found.sound.seq > (head := self.head()).seq:
            return replace(found, fault="it was not entered by this log, whose head does not know it", at=head.seq + 1)
        return found

    def _put(self, entry: AuditEntry, after: Anchor) -> Anchor | None:
        """None: it was appended; else the head that is there instead of `after`."""
        told = (after.seq, after.hash, entry.line(), entry.seq, entry.hash, EMPTY.hash)
        try:
            reply = self.redis.eval(_APPEND, 2, AUDIT, AUDIT_HEAD, *told)
        except ResponseError as error:
            if "equal or smaller" not in str(error):
                raise
            raise Unavailable(
                "The audit log is damaged: it has entries that its head does not know. `vcllm audit verify` says more."
            ) from error
        return None if reply is None else Anchor(seq=int(reply[0]), hash=reply[1])

    def _range(self, command: str, begin: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        """Not decoded: a damaged entry must not keep the others from being read."""
        rows = self.redis.execute_command(command, AUDIT, begin, end, "COUNT", limit, **{NEVER_DECODE: []}) or []
        return [(_text(id_), (fields or {}).get(b"entry", b"")) for id_, fields in rows]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_APPEND = """
local head = redis.call('HMGET', KEYS[2], 'seq', 'hash')
local seq, hash = head[1] or '0', head[2] or ARGV[6]
if seq ~= ARGV[1] or hash ~= ARGV[2] then return {seq, hash} end
redis.call('XADD', KEYS[1], ARGV[4] .. '-0', 'entry', ARGV[3])
redis.call('HSET', KEYS[2], 'seq', ARGV[4], 'hash', ARGV[5])
return false
"""
