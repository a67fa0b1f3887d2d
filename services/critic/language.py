"""Is this text in the language it should be in? By its letters alone."""

from __future__ import annotations

import re

from vcllm.contracts.base import Language

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")

LEAST_HAN_IN_ZH = 0.3
MOST_HAN_IN_EN = 0.2


def han_share(text: str) -> float | None:
    """Chinese characters among all letters; None when there are no letters."""
    han, latin = len(HAN.findall(text)), len(LATIN.findall(text))
    return han / (han + latin) if han + latin else None


def is_in(language: Language, text: str) -> bool:
    """A text without letters, such as a number, is in every language."""
    share = han_share(text)
    if share is None:
        return True
    return share >= LEAST_HAN_IN_ZH if language == Language.ZH else share <= MOST_HAN_IN_EN
