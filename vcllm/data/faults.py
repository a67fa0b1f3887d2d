"""What is wrong with a row: where, at which place in it, and why; kept up to a cap, counted beyond it."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_SHOWN = 20
"""Faults that are told one by one; the rest is a number."""


@dataclass(frozen=True)
class Fault:
    """One thing to correct."""

    where: str
    """`line 12` of a text file, `row 12` of a table; with the file's name in front when a folder was read."""
    pointer: str
    """JSON pointer into the row (RFC 6901); empty for the row as a whole."""
    reason: str
    code: str = "invalid_value"
    """`invalid_json`: there is no row; `missing_field`, `invalid_value`; `contaminated`: it quotes the evaluation."""

    def __str__(self) -> str:
        return f"{self.where} {self.pointer}: {self.reason}" if self.pointer else f"{self.where}: {self.reason}"


@dataclass
class Faults:
    """All faults of one set; only the first `max_shown` are kept."""

    max_shown: int = MAX_SHOWN
    total: int = 0
    shown: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        self.total += 1
        if len(self.shown) < self.max_shown:
            self.shown.append(fault)

    def __str__(self) -> str:
        """All that are shown, and how many there are besides."""
        more = self.total - len(self.shown)
        told = "; ".join(map(str, self.shown))
        return f"{told}; and {more:,} more" if more and told else told or f"{more:,} faults"


def printable(text: str, max_length: int = 24) -> str:
    """A piece of the user's own text as it may stand in a message: short, and without control characters."""
    short = text if len(text) <= max_length else f"{text[: max_length - 1]}…"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in short)
