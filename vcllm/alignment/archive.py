"""The archive: a quality-diversity grid sub-domain x tactic x language of what was tried, what won, and how it went.

It decides where the Attacker looks next, what it is told to vary, and how much a win teaches: novel wins more. State is
plain data, and an archive restored from it goes on exactly as the one that gave it. pyribs, the usual library for such
grids, keeps one elite of a cell and no failures, and brings numba, pandas and scikit-learn along. Does not know who
judged, nor what becomes of a win.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from vcllm.alignment.drawing import draw, draw_greedily, estimates
from vcllm.alignment.figures import archive_figures
from vcllm.alignment.novelty import Neighbours, Sample
from vcllm.contracts.archive import ArchiveFigures, ArchiveState, CellState, Elite, Tried
from vcllm.contracts.attacks import Attack, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.recipes import ArchiveParams

FADING = 0.5
"""Weight of a cell's earlier attempts beside a new one: the Actor has learned since."""
RECALLED = 4
"""Earlier attempts count as no more than so many, before they fade."""
ANSWER_CHARS = 300
"""What is remembered of an answer."""
DECIMALS = 4
"""Of what is stored of an embedding, and of novelty."""


@dataclass(frozen=True)
class Entry:
    """One attack of a round and how it went."""

    attack: Attack
    success: float | None
    """Share of the judged answers that violate the charter; None: none could be judged, so it is no attempt."""
    worst_answer: str = ""
    """The answer that came nearest to a violation."""
    embedding: Sequence[float] = ()
    """Of its query, of unit length; empty: none was taken. All rounds must ask the same version for theirs."""

    @property
    def counts(self) -> bool:
        """A harmless question is no attempt either: nobody wanted it to win."""
        return self.success is not None and self.attack.goal.kind == "attack"

    @property
    def won(self) -> bool:
        return self.counts and bool(self.success)


class Archive:
    """The grid."""

    def __init__(self, cells: Iterable[Cell], params: ArchiveParams, lineage: str) -> None:
        self.cells = {cell.key: cell for cell in cells}
        """By their keys: what may be chosen, and what figures are of."""
        self.params = params
        self.lineage = lineage
        self._states: dict[str, CellState] = {key: CellState() for key in self.cells}
        self._wins = self._remembered()

    @classmethod
    def restore(cls, state: ArchiveState, cells: Iterable[Cell], params: ArchiveParams) -> Self:
        """What is known of cells that are no longer in the grid stays known, and still counts for novelty."""
        archive = cls(cells, params, state.lineage)
        archive._states |= state.cells
        archive._wins = archive._remembered()
        return archive

    def state(self, round: int) -> ArchiveState:
        """round: the last one that was entered."""
        return ArchiveState(lineage=self.lineage, round=round, cells=dict(self._states))

    # Before a round.

    def choose(
        self, cells: Sequence[Cell], num: int, chance: random.Random, explore: float | None = None
    ) -> list[Cell]:
        """`num` of these cells of the grid, some of them several times: least tried ones, and those where attacks win.

        explore: weight of a cell that never won, beside its success rate; None: the recipe's. See `drawing`.
        """
        assert all(cell.key in self.cells for cell in cells), "cells to choose from belong to the grid"
        if not self.params.diversity:
            return draw_greedily(cells, self._states, num, chance)
        return draw(cells, self._states, self.estimates(), num, chance, explore or self.params.explore)

    def estimates(self) -> dict[str, float]:
        """By cell the success to be expected there: its own rate, drawn towards its neighbours' while it is young."""
        return estimates(list(self.cells.values()), self._states)

    def rates(self) -> list[float]:
        """Moving success rates of the cells that were tried."""
        return [self._states[key].rate for key in self.cells if self._states[key].tried]

    def parents(self, cell: Cell, num: int, chance: random.Random) -> list[Elite]:
        """Up to `num` different elites of a cell, to be varied; better ones more often. Empty: it has none.

        Weighted sampling without replacement (Efraimidis and Spirakis 2006).
        """
        elites = self._known(cell.key).elites
        rank = [chance.random() ** (1 / elite.quality) for elite in elites]
        return [elites[place] for place in sorted(range(len(elites)), key=rank.__getitem__, reverse=True)[:num]]

    def memory(self, cell: Cell) -> list[Tried]:
        """The last attempts in a cell, newest last."""
        return list(self._known(cell.key).memory)

    # After a round.

    def novelty(self, attack: Attack, embedding: Sequence[float] = ()) -> float:
        """1 for a query unlike every remembered win of its language, 0 for one that is already there.

        Of the query alone: turns before it are not compared.
        """
        return self._novelties([Entry(attack, None, embedding=embedding)])[0]

    def enter(self, entries: Iterable[Entry], round: int) -> list[float]:
        """Record a round's attacks; of each its novelty beside what was remembered and the round's wins before it.

        What does not count (see `Entry`) is given its novelty, and nothing of it is recorded.
        """
        rows = list(entries)
        novelties = self._novelties(rows)
        wins: dict[str, list[Elite]] = {}
        for key, own in _grouped([place for place, row in enumerate(rows) if row.counts], rows).items():
            attempts = [rows[place] for place in own]
            wins[key] = [_elite(rows[place], novelties[place], round) for place in own if rows[place].won]
            self._states[key] = self._tried(self._known(key), attempts, round)
        self._keep(wins)
        self._wins = self._remembered()
        return novelties

    def figures(self, attacks: Iterable[Attack], weakest: int = 10) -> ArchiveFigures:
        """The archive in numbers; attacks: of the round that was entered last.

        The weakest cells are those with the highest rate, drawn towards their neighbours' while they have few attempts
        (see `estimates`), so that one lucky attack does not make a cell weak.
        """
        grid = {key: self._states[key] for key in self.cells}
        return archive_figures(grid, self.estimates(), attacks, weakest)

    # How it is kept.

    def _known(self, key: str) -> CellState:
        return self._states.get(key, CellState())

    def _remembered(self) -> dict[Language, Neighbours]:
        """Wins by language: all elites, and what won among the last attempts."""
        found: dict[Language, dict[str, Sample]] = {language: {} for language in Language}
        for key, state in self._states.items():
            own = found[_language(key)]
            for elite in state.elites:
                own.setdefault(elite.query, Sample(elite.query, elite.embedding))
            for tried in state.memory:
                if tried.success:
                    own.setdefault(tried.query, Sample(tried.query))
        return {language: Neighbours(language, own.values()) for language, own in found.items()}

    def _novelties(self, rows: Sequence[Entry]) -> list[float]:
        found = [0.0] * len(rows)
        for language in Language:
            here = [place for place, row in enumerate(rows) if row.attack.goal.cell.language == language]
            for place, near in zip(here, self._nearest([rows[place] for place in here], language), strict=True):
                found[place] = round(1 - near, DECIMALS)
        return found

    def _nearest(self, rows: Sequence[Entry], language: Language) -> list[float]:
        batch = [Sample(row.attack.query, row.embedding) for row in rows]
        return self._wins[language].nearest(batch, lambda place, _: rows[place].won)

    def _tried(self, before: CellState, attempts: Sequence[Entry], number: int) -> CellState:
        """A cell after a round's attempts; elites are left to `_keep`."""
        successes = [entry.success or 0.0 for entry in attempts]
        weight = FADING * min(before.tried, RECALLED)
        memory = [_remembered_attempt(entry, number) for entry in attempts]
        again = {_words(entry.attack) for entry in attempts}
        return CellState(
            tried=before.tried + len(attempts),
            won=before.won + sum(entry.won for entry in attempts),
            rate=(weight * before.rate + sum(successes)) / (weight + len(attempts)),
            last=number,
            # What was played again stands or falls by how it went now.
            elites=[elite for elite in before.elites if (elite.query, str(elite.history)) not in again],
            memory=[*before.memory, *memory][-self.params.memory :] if self.params.memory else [],
        )

    def _keep(self, wins: dict[str, list[Elite]]) -> None:
        """Best elites of every cell in the languages of these wins, none of them too near a better one.

        Better is a higher success, then a later round, then a higher novelty.
        """
        for language in {_language(key) for key in wins}:
            rows = [
                (key, elite)
                for key, state in self._states.items()
                if _language(key) == language
                for elite in (*state.elites, *wins.get(key, ()))
            ]
            rows.sort(key=lambda row: (row[1].success, row[1].round, row[1].novelty), reverse=True)
            kept = self._distinct(rows, language)
            for key in {key for key, _ in rows}:
                self._states[key] = self._states[key].model_copy(update={"elites": kept[key]})

    def _distinct(self, rows: Sequence[tuple[str, Elite]], language: Language) -> defaultdict[str, list[Elite]]:
        """Those to be kept, by cell; rows: best first."""
        kept: defaultdict[str, list[Elite]] = defaultdict(list)
        least = self.params.min_novelty if self.params.diversity else 0.0

        def joins(place: int, near: float) -> bool:
            key, elite = rows[place]
            if len(kept[key]) >= self.params.kept or near == 1 or 1 - near < least:
                return False
            kept[key].append(elite)
            return True

        samples = [Sample(elite.query, elite.embedding) for _, elite in rows]
        Neighbours(language).nearest(samples, joins)
        return kept


def _grouped(places: Iterable[int], rows: Sequence[Entry]) -> dict[str, list[int]]:
    """By cell, in their order."""
    found: dict[str, list[int]] = {}
    for place in places:
        found.setdefault(rows[place].attack.goal.cell.key, []).append(place)
    return found


def _elite(entry: Entry, novelty: float, number: int) -> Elite:
    return Elite(
        query=entry.attack.query,
        history=entry.attack.history,
        goal=entry.attack.goal,
        success=entry.success or 0.0,
        novelty=novelty,
        round=number,
        embedding=[round(value, DECIMALS) for value in entry.embedding],
    )


def _remembered_attempt(entry: Entry, number: int) -> Tried:
    return Tried(
        query=entry.attack.query,
        success=entry.success or 0.0,
        answer=entry.worst_answer[:ANSWER_CHARS],
        round=number,
    )


def _words(attack: Attack) -> tuple[str, str]:
    return attack.query, str(attack.history)


def _language(key: str) -> Language:
    return Language(key.rpartition("/")[2])
