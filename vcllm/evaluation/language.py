"""In which language a text is, by its letters alone."""

from __future__ import annotations

import re

from vcllm.contracts.base import Language

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
LEAST_HAN_IN_ZH = 0.3
MOST_HAN_IN_EN = 0.2


def is_in(language: Language | str, text: str) -> bool:
    """A text without letters, such as a number, is in every language."""
    han, latin = len(HAN.findall(text)), len(LATIN.findall(text))
    if not han + latin:
        return True
    share = han / (han + latin)
    return share >= LEAST_HAN_IN_ZH if language == Language.ZH else share <= MOST_HAN_IN_EN


def text_size(text: str, language: Language | str) -> int:
    """Characters in Chinese, words in English: what lengths are compared by."""
    return len(HAN.findall(text)) if language == Language.ZH else len(text.split())
