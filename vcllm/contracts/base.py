"""What every contract shares: frozen, closed to unknown keys, documented by its field docstrings.

Knows nothing of HTTP, Redis or files; it only gives the models their manners.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Versions, files, lineages and jobs: safe in a path, a URL and a Redis key."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class Contract(BaseModel):
    """A frozen message; an unknown key is refused by name."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # Any bound, also this one, makes pydantic refuse half a surrogate pair, which `json.loads` lets through and
        # neither a tokenizer nor a reply can encode.
        str_min_length=0,
    )


class Language(StrEnum):
    """The two languages the product speaks."""

    ZH = "zh"
    EN = "en"


class Bilingual(Contract):
    """One text, written in both languages side by side."""

    zh: str
    en: str

    def __getitem__(self, language: Language | str) -> str:
        return self.zh if language == Language.ZH else self.en


def canonical_json(value: Any) -> bytes:
    """The one byte form that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value in its canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
