"""Fields of the OpenAI API that have no effect here, and what happens to a request that has them.

A field that cannot change the text is ignored. One that could is accepted with the value that changes nothing,
which SDKs and frameworks send unasked, and refused by name with any other: ignoring it would return something
the caller did not ask for. `null` is as if the field were not there.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

IGNORED_FIELDS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

UNSUPPORTED = "unsupported_parameter"
"""The code of the refusal."""

Neutral = Mapping[str, tuple[object, ...]]
"""Unsupported field to the values that change nothing."""

NEUTRAL_IN_REQUEST: Neutral = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "min_p": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Without tools, "auto" is the same as "none"."""

NEUTRAL_IN_MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
"""An answer of the SDK, sent back as part of the conversation, has several of these."""

NEUTRAL_IN_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,)}


def supported_fields(
    sent: Mapping[str, object], supported: Container[str], ignored: Container[str], neutral: Neutral
) -> dict[str, object]:
    """What was sent, without what changes nothing; ValidationError that names each field that is refused."""
    given = {field: value for field, value in sent.items() if value is not None and field not in ignored}
    refused = [
        field for field, value in given.items() if field not in supported and value not in neutral.get(field, ())
    ]
    if refused:
        faults = [_fault(field, neutral.get(field, ())) for field in refused]
        raise ValidationError.from_exception_data("OpenAI API", faults)
    return {field: value for field, value in given.items() if field in supported}


def _fault(field: str, allowed: tuple[object, ...]) -> InitErrorDetails:
    except_as = f", except as {' or '.join(map(json.dumps, allowed))}" if allowed else ""
    error = PydanticCustomError(UNSUPPORTED, "Not supported{except_as}. Leave it out.", {"except_as": except_as})
    return {"type": error, "loc": (field,), "input": None}
