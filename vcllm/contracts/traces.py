"""The id that a request shares with everything done because of it, in the form of W3C Trace Context.

A trace is named by 32 hex digits; whoever works in it is named by 16 more. Both travel in the header `traceparent`, in
the record of a job, and as `trace` in every pair and manifest that came of it. Does not know who records traces, if
anybody does.

Source: https://www.w3.org/TR/trace-context-2/, sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple, Self

TRACEPARENT_PATTERN = r"^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$"
"""As we write it."""

_ANY_VERSION = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceParent(NamedTuple):
    """A place in a trace: what is done next belongs under it. (A tuple, for one is made for every request.)"""

    trace: str
    span: str
    sampled: bool = True
    """Whoever records traces is asked to record this one."""

    @classmethod
    def new(cls) -> Self:
        """A trace of its own."""
        digits = secrets.token_hex(24)
        return cls(digits[:32], digits[32:])

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """None for what is no `traceparent`. A later version is read as far as this one knows it."""
        found = _ANY_VERSION.fullmatch(header)
        if found is None or (found[1] == "00" and found[5] is not None):
            return None
        return cls(found[2], found[3], bool(int(found[4], 16) & 1))

    def __str__(self) -> str:
        return f"00-{self.trace}-{self.span}-0{int(self.sampled)}"


def trace_of(traceparent: str) -> str:
    """Id of the trace, of what was written by us."""
    return traceparent.split("-")[1]


def new_traceparent() -> str:
    """For what nobody's request began."""
    return str(TraceParent.new())
