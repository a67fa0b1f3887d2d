"""Whether a chain of audit entries is whole: a pure walk over its lines, wherever they are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vcllm.contracts.audit import EMPTY, Anchor, hash_of
from vcllm.contracts.base import canonical_json


@dataclass(frozen=True)
class ChainCheck:
    """How far a chain is sound, and the first place where it is not."""

    sound: Anchor
    """The last entry before which nothing is wrong."""
    fault: str | None = None
    """None: the chain is whole."""
    at: int | None = None
    """Sequence number of the first bad or missing entry."""


def check_chain(
    lines: Iterable[bytes], *, after: Anchor = EMPTY, head: Anchor | None = None, anchors: Iterable[Anchor] = ()
) -> ChainCheck:
    """Walk the entries behind `after`, in order.

    head: what the log said its last entry was, before it was read. anchors: noted before. The chain has to go through
    each of them that lies behind `after`.
    """
    named = [("an anchor names", anchor) for anchor in anchors]
    named += [] if head is None else [("the log went on to", head)]
    awaited = [(who, anchor) for who, anchor in named if anchor.seq > after.seq]
    sound = after
    for line in lines:
        found = _link(line, sound)
        if isinstance(found, str):
            return ChainCheck(sound, found, sound.seq + 1)
        if any(anchor.seq == found.seq and anchor.hash != found.hash for _, anchor in awaited):
            return ChainCheck(sound, "it is another one than was written", found.seq)
        sound = found
    for who, anchor in awaited:
        if anchor.seq > sound.seq:
            return ChainCheck(sound, f"it is missing, though {who} entry {anchor.seq}", sound.seq + 1)
    return ChainCheck(sound)


def _link(line: bytes, before: Anchor) -> Anchor | str:
    """The entry's place when it follows `before`, else what is wrong with it."""
    fields = _fields(line)
    if fields is None:
        return "it cannot be read"
    if canonical_json(fields) != line or fields.get("hash") != hash_of(fields):
        return "it was changed after it was written"
    if (seq := fields.get("seq")) != before.seq + 1:
        return f"it is missing or out of order: entry {seq} stands in its place"
    if fields.get("prev") != before.hash:
        return "it does not follow the entry before it"
    return Anchor(seq=before.seq + 1, hash=fields["hash"])


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
        canonical_json(fields)  # half a character can be read, but not written
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
