"""What an answer cost in tokens, as the gateway reads it off the bytes it relays.

A whole reply ends with its usage. A stream has it only where its client asked; so the Actor says it to the gateway in a
comment just before `[DONE]`, which the gateway takes out again.
"""

from __future__ import annotations

import re

USAGE_HEADER = "x-vc-usage"
"""On a request for a stream: end it with the comment."""

BEGINNING = b": usage "

_COMMENT = re.compile(rb"^: usage (\d+) (\d+)\n\n", re.MULTILINE)
_TOTAL = re.compile(rb'"total_tokens":\s?(\d+)')
_TAIL = 512
"""Bytes at the end of a whole reply in which its usage stands."""


def usage_comment(prompt_tokens: int, completion_tokens: int) -> bytes:
    return b": usage %d %d\n\n" % (prompt_tokens, completion_tokens)


def take_usage(frames: bytes) -> tuple[bytes, int | None]:
    """The frames without the comment, and the tokens it tells; None: there is none in them."""
    found = _COMMENT.search(frames)
    if found is None:
        return frames, None
    return frames[: found.start()] + frames[found.end() :], int(found[1]) + int(found[2])


def reply_usage(reply: bytes) -> int | None:
    """Tokens of a whole reply; None: it does not say."""
    found = _TOTAL.findall(reply[-_TAIL:])
    return int(found[-1]) if found else None
