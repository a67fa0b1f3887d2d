"""Encoded rows on disk: written once in a stream, then read in any order without being held in memory.

A row is a string of tokens that may fork once: a prefix, a first branch, and a second branch that continues the same
prefix. A document or a conversation is one branch without prefix; a preference is prompt, chosen, rejected. Knows
neither where rows come from nor what is learned from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcllm.contracts.problems import BadRequest
from vcllm.stores.models import fsync, translate_full_disk

IDS, LEARNED, ROWS, COUNTS = "ids.u32", "learned.u8", "rows.npy", "counts.json"
ROW = np.dtype(
    [
        ("start", "<i8"),  # where its tokens begin in the files
        ("line", "<i4"),  # of the dataset, from 1
        ("length", "<i4"),
        ("prefix", "<i4"),
        ("fork", "<i4"),  # where the second branch begins; the length when there is none
        ("learned", "<i4"),  # learned tokens up to the fork
        ("label", "<i2"),
        ("language", "<i2"),
        ("weight", "<f4"),
        ("key", "S32"),  # hash of the tokens and of where they fork
    ]
)
"""Every row also has `scores`, as many as there are criteria, which differs from corpus to corpus."""


@dataclass(frozen=True)
class Encoded:
    """One row as tokens. `learned[i]`: whether token i is a target; the first token of all never is."""

    ids: list[int]
    learned: list[bool]
    line: int = 0
    """Of the dataset, from 1."""
    prefix: int = 0
    """Tokens that both branches continue."""
    fork: int | None = None
    """Where the second branch begins; None: there is one branch."""
    weight: float = 1.0
    label: int = -1
    """Class of a classifier's row; -1: none."""
    language: int = -1
    """0 zh, 1 en, -1 unknown: for calibration per language."""
    scores: tuple[float, ...] = ()
    """By criterion, in an order that whoever encodes keeps for all rows; NaN: unknown."""


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    used: int = 0
    """Encoded rows; more than `rows` where long documents were split."""
    cut: int = 0
    """Longer than `max_length`: shortened, or split into several."""
    dropped: int = 0
    """Nothing to learn was left after shortening."""
    tokens: int = 0
    learned: int = 0


@dataclass(frozen=True)
class Corpus:
    """Read access to what `write_corpus` wrote."""

    ids: NDArray[np.uint32]
    learned: NDArray[np.uint8]
    rows: NDArray[np.void]
    counts: Counts = field(default_factory=Counts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of every row; a shared prefix counts once."""
        return self.rows["length"]

    @property
    def forked(self) -> NDArray[np.bool_]:
        """Which rows have a second branch."""
        return self.rows["fork"] < self.rows["length"]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Rows by criteria; NaN where a row has no score."""
        return self.rows["scores"]

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        rows = np.load(folder / ROWS, allow_pickle=False)
        counts = Counts(**json.loads((folder / COUNTS).read_text()))
        return cls(np.memmap(folder / IDS, "<u4", "r"), np.memmap(folder / LEARNED, "u1", "r"), rows, counts)


def write_corpus(
    folder: Path, encoded: Iterable[Encoded | None], counts: Counts, confirm: Callable[[], None] = lambda: None
) -> Corpus:
    """Write rows as they come; a folder that is already complete is opened instead. None: a row that was dropped.

    `counts` is filled by whoever encodes, as the rows are drawn. BadRequest when no row is left.
    confirm: asked before the folder appears; what it raises keeps it from appearing.
    """
    if (folder / COUNTS).is_file():
        return Corpus.open(folder)
    for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:12]}")
    temporary.mkdir(parents=True)
    try:
        rows = _write_tokens(temporary, encoded, counts)
        if not rows:
            raise BadRequest(
                f"None of the {counts.rows} rows of the dataset can be trained on: nothing to learn is left within "
                "max_length. Bring rows with text, or raise max_length."
            )
        np.save(temporary / ROWS, _table(rows), allow_pickle=False)
        (temporary / COUNTS).write_text(json.dumps(vars(counts)))
        for name in (IDS, LEARNED, ROWS, COUNTS):
            fsync(temporary / name)
        confirm()
        with suppress(OSError):  # there already: another process wrote the very same
            os.rename(temporary, folder)
    except OSError as error:
        raise translate_full_disk(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Corpus.open(folder)


def _table(rows: list[tuple[Any, ...]]) -> NDArray[np.void]:
    num_scores = len(rows[0][-1])
    return np.array(rows, dtype=[*ROW.descr, ("scores", "<f4", (num_scores,))])


def _write_tokens(folder: Path, encoded: Iterable[Encoded | None], counts: Counts) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    start = 0
    with (folder / IDS).open("wb") as ids_file, (folder / LEARNED).open("wb") as learned_file:
        for row in encoded:
            if row is None or not any(row.learned[1:]) and row.label < 0:
                counts.dropped += 1
                continue
            ids, learned = np.array(row.ids, "<u4"), np.array(row.learned, "u1")
            learned[0] = 0
            ids.tofile(ids_file)
            learned.tofile(learned_file)
            length = len(ids)
            fork = length if row.fork is None else row.fork
            first = int(learned[:fork].sum())
            shape = f"{row.prefix}/{fork}".encode()
            key = hashlib.blake2b(ids.tobytes() + shape, digest_size=16).hexdigest()
            place = (start, row.line, length, row.prefix, fork, first)
            rows.append((*place, row.label, row.language, row.weight, key, row.scores))
            start += length
            counts.used += 1
            counts.tokens += length
            counts.learned += int(learned.sum())
    return rows
