"""Finds rows that quote the evaluation, word for word or lightly edited, in Chinese and English.

Texts are compared after NFKC, case folding, and removal of everything but letters and digits. An item of length L
is quoted by a row when

  1  they share runs: g-grams of the item (g = 13; 7 where most of it is Chinese, whose characters say more; L where
     the item is shorter) stand in one turn of the row at the same distance from one another, and the longest such
     group covers at least 0.3 L characters; and
  2  in the window of the turn to which that group points, widened by L/4 on both sides, the matching blocks
     (Ratcliff and Obershelp, as in `difflib`) of at least g // 3 characters come to SAME = 0.85 of L.

Step 1 alone would need a choice between missing a Chinese question with one character changed in its middle and
flagging every row that shares a template's opening with it; step 2 tells the two apart. Of the shipped charter's
questions (200 of each language, on which SAME was also chosen) it finds all with one random edit and, with two, 92 %
(zh) or 100 % (en); of 300 *other* questions, many with an opening or a claim in common, 2 to 5 % count as quotes.
Items of fewer than MIN_LENGTH characters would be found everywhere and are not looked for. Traditional and simplified
characters differ.

Memory: the grams of the evaluation, and one row. Knows texts with an id, and no evaluation.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from difflib import SequenceMatcher

GRAM = 13
GRAM_ZH = 7
SHARED = 0.3
SAME = 0.85
MIN_LENGTH = 4
NOT_WORD = re.compile(r"[\W_]+")
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


class Index:
    """The grams of one size, of items of one script."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """By gram: the items that hold it, and where."""
        self.stride = 1 + size // 4
        self.probe = size + 1 - self.stride
        self.probes: set[str] = set()
        """Shorter grams: a run of `size` holds one of them at every `stride`-th place, wherever it begins."""

    def add(self, number: int, text: str) -> None:
        for place in range(len(text) - self.size + 1):
            self.places[text[place : place + self.size]].append((number, place))
        self.probes.update(text[place : place + self.probe] for place in range(len(text) - self.probe + 1))

    def misses(self, text: str) -> bool:
        """Whether the text surely shares nothing: the look that most rows get and no more."""
        size, probes = self.probe, self.probes
        return not any(text[start : start + size] in probes for start in range(0, len(text) - size + 1, self.stride))

    def diagonals(self, text: str) -> dict[int, Counter[int]]:
        """By item: where in the text it would begin, and how many of its grams say so."""
        found: dict[int, Counter[int]] = defaultdict(Counter)
        for start in range(len(text) - self.size + 1):
            for number, place in self.places.get(text[start : start + self.size], ()):
                found[number][start - place] += 1
        return found


class Contamination:
    """The evaluation's texts, indexed once, looked for in many rows."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        """items: id and text; ids are what a leak is told by."""
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.indices: dict[tuple[bool, int], Index] = {}
        """By whether the items are Chinese, and gram size."""
        for name, text in items:
            normal = plain(text)
            if len(normal) >= MIN_LENGTH:
                self._add(name, normal)

    def find(self, texts: Iterable[str]) -> str | None:
        """The id of an item that one of a row's texts quotes; None for a clean row."""
        return next((name for text in texts if (name := self._quoted(plain(text))) is not None), None)

    def _add(self, name: str, text: str) -> None:
        key = (is_chinese(text), gram_size(text))
        self.indices.setdefault(key, Index(key[1])).add(len(self.ids), text)
        self.ids.append(name)
        self.texts.append(text)

    def _quoted(self, text: str) -> str | None:
        any_chinese = CHINESE.search(text) is not None
        for (chinese, size), index in self.indices.items():
            if (chinese and not any_chinese) or index.misses(text):
                continue
            for number, offsets in index.diagonals(text).items():
                offset, hits = offsets.most_common(1)[0]
                item = self.texts[number]
                if hits + size - 1 >= SHARED * len(item) and _share(item, text, offset, size) >= SAME:
                    return self.ids[number]
        return None


def plain(text: str) -> str:
    """The text as it is compared: letters and digits, one case, one form."""
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return NOT_WORD.sub("", folded)


def is_chinese(text: str) -> bool:
    """Whether most of a plain text is Chinese."""
    return 2 * len(CHINESE.findall(text)) >= len(text)


def gram_size(text: str) -> int:
    """Characters of a run that gives a plain text away."""
    return min(len(text), GRAM_ZH if is_chinese(text) else GRAM)


def _share(item: str, text: str, offset: int, size: int) -> float:
    """How much of the item the text has around this place."""
    slack = len(item) // 4
    window = text[max(0, offset - slack) : offset + len(item) + slack]
    blocks = SequenceMatcher(None, item, window, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size >= max(1, size // 3)) / len(item)
