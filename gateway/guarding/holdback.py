"""Holding back one streamed answer: its frames go on only when a check has covered every character in them.

Pure: takes frames in and gives frames out, whole and as they were. Knows no Critic and no clock.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Literal, NamedTuple

SENTENCE_END = re.compile(r"[。！？!?…\n]|\.(?=\s|$)")
MOST_HOLDS = 3
"""After so many times what is held back at once, an answer without sentences is cut anywhere."""


class Span(NamedTuple):
    """What a check is about: the answer from its beginning."""

    end: int
    """In characters."""
    complete: bool


class HoldBack:
    """One answer."""

    def __init__(self, hold: Literal["whole"] | int) -> None:
        """hold: characters that are judged at a time; `whole`: all at the end."""
        self.text = ""
        self.finished = False
        self.begun = False
        """A frame was given out."""
        self.shown = 0
        """Characters that were given out."""
        self._hold = hold
        self._frames: deque[tuple[int, bytes]] = deque()
        """With how much of the text must be covered first."""
        self._cut = 0
        """The furthest frame's end at which, or within which, a sentence ends."""
        self._covered = 0

    def take(self, frame: bytes, text: str, *, finished: bool = False, tells: bool = False) -> None:
        """One more frame of the answer, with the text it adds.

        finished: it is the last one. tells: it has no text, and tells of what is to come.
        """
        assert not self.finished, "nothing comes after the end"
        # The letter before decides with the next whether a point ends a sentence.
        begins = max(0, len(self.text) - 1)
        self.text += text
        self.finished = finished
        self._frames.append((len(self.text) + tells, frame))
        if text and SENTENCE_END.search(self.text, begins):
            self._cut = len(self.text)

    @property
    def all(self) -> Span:
        """As far as it has come."""
        return Span(len(self.text), self.finished)

    @property
    def due(self) -> Span | None:
        """What is to be checked next; None: there is not enough yet."""
        if self.finished:
            return self.all
        if self._hold == "whole":
            return None
        if self._cut - self._covered >= self._hold:
            return Span(self._cut, False)
        if len(self.text) - self._covered >= MOST_HOLDS * self._hold:
            return Span(len(self.text), False)
        return None

    def cover(self, span: Span) -> None:
        """A check of this has passed."""
        self._covered = max(self._covered, span.end)

    def release(self, *, complete: bool = False) -> bytes:
        """The frames that are covered, in order. complete: all of them, for a check of the whole answer has passed."""
        out = []
        while self._frames and (complete or (self._frames[0][0] <= self._covered and not self._is_last)):
            end, frame = self._frames.popleft()
            self.begun, self.shown = True, min(end, len(self.text))
            out.append(frame)
        return b"".join(out)

    def drop(self) -> None:
        """Forget what is held: it will not be shown, nor kept."""
        self._frames.clear()
        self.text = ""

    @property
    def _is_last(self) -> bool:
        return self.finished and len(self._frames) == 1
