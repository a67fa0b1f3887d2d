"""The audit log's entries: who did what to what, chained by hash so that a changed past shows.

No text of a conversation and no secret has a place in one: names and ids only.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from vcllm.contracts.base import Contract, canonical_json, digest

NO_HASH = "0" * 64
"""What the first entry follows."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_HASH = r"^[0-9a-f]{64}$"


class Outcome(StrEnum):
    """What became of a deed."""

    BEGUN = "begun"
    """Entered before anything is done; another entry, whose `of` names this one, says how it ended."""
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class Deed(Contract):
    """What is entered, before it has its place in the chain."""

    actor: str | None
    """Id of the API key, or a service with its job, such as `trainer:job-1`; None: nobody who is known."""
    action: str = Field(max_length=200)
    """Method and route template of the API, such as `POST /v1/jobs/{job_id}/cancel`, or the name of an inner step."""
    target: str | None = None
    """Id or name of what it is done to."""
    outcome: Outcome
    status: int | None = None
    """Of the HTTP reply; None: there was none, or not yet."""
    request: str | None = None
    """Request id, as in the reply's header and in the logs."""
    trace: str | None = None
    """Trace id, by which what follows from it is found."""
    of: int | None = None
    """The `begun` entry that this one ends."""
    withheld: int = 0
    """Refusals like this one before it that were too many to be entered one by one."""


class AuditEntry(Deed):
    """One link of the chain."""

    version: Literal[1] = 1
    seq: int = Field(ge=1)
    """1, 2, 3, ... without a gap."""
    time: float
    """Unix seconds."""
    prev: str = Field(pattern=_HASH)
    """Hash of the entry before; zeros for the first."""
    hash: str = Field(pattern=_HASH)
    """sha256 of all the rest in its canonical form."""

    def line(self) -> bytes:
        """The bytes that are stored."""
        return canonical_json(self.model_dump(mode="json"))


class Anchor(Contract):
    """How far a chain goes. Noted elsewhere, it proves later that nothing up to there was changed or cut off."""

    seq: int = Field(ge=0)
    """0: the chain is empty."""
    hash: str = Field(pattern=_HASH)

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


EMPTY = Anchor(seq=0, hash=NO_HASH)


def parse_anchor(text: str) -> Anchor:
    """From `SEQ:HASH`; ValueError for anything else."""
    seq, _, hash_ = text.strip().partition(":")
    if not seq.isascii() or not seq.isdigit() or not re.fullmatch(_HASH, hash_):
        raise ValueError("An anchor reads SEQ:HASH, as `vcllm audit verify` prints it.")
    return Anchor(seq=int(seq), hash=hash_)


def link(deed: Deed, after: Anchor, time: float) -> AuditEntry:
    """The entry that the deed becomes behind `after`."""
    fields = {
        "version": 1,
        "seq": after.seq + 1,
        "time": round(time, 3),
        "prev": after.hash,
        **deed.model_dump(mode="json"),
    }
    return AuditEntry(**fields, hash=digest(fields))


def hash_of(fields: dict[str, Any]) -> str:
    """What the hash of an entry with these fields has to be."""
    return digest({name: value for name, value in fields.items() if name != "hash"})


def as_target(value: object) -> str | None:
    """An id as it may be entered. What is none (a text, a key pasted into an address) is not repeated."""
    if not isinstance(value, str):
        return None
    if value.startswith("vck_") or not _ID.fullmatch(value):
        return "(not an id)"
    return value
