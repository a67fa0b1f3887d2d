"""The operator's own preferences in the rounds: each round takes its share of them, and none comes twice.

Approved pairs in the data say where in the archive they belong, so they join a round's pairs, caps and ledger. Rows
that do not are for the training alone. What makes rows usable was settled when they were taken in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from pydantic import ValidationError

from services.trainer.datasets import OperatorData, Row
from vcllm.contracts.pairs import Pair
from vcllm.contracts.recipes import DataSource
from vcllm.data.reading import read_set


class ImportedPreferences:
    """One snapshot of a preference stage's data, told apart."""

    def __init__(self, data: OperatorData, sources: Sequence[DataSource], dataset: str) -> None:
        """dataset: the snapshot that `data.freeze(sources, "preference", ...)` has made."""
        self.data, self.sources, self.dataset = data, sources, dataset

    def pairs_of(self, number: int, count: int) -> list[Pair]:
        """The pairs for round `number`, from 1, of `count`; their provenance stays what it was."""
        return self._pairs[number - 1 :: count]

    def rows_of(self, number: int, count: int, most: int | None = None) -> Iterator[Row]:
        """The other rows for that round, the first `most` of them; None: all. Nothing is held in memory."""
        others = (row for row in self._rows() if not _is_pair(row))
        return islice(others, number - 1, None if most is None else number - 1 + most * count, count)

    @cached_property
    def _pairs(self) -> list[Pair]:
        """In the snapshot's order; read once more from the operator's files, as the snapshot has only their texts."""
        wanted = [row["id"] for row in self._rows() if _is_pair(row)]
        found = {pair.id: pair for pair in self._written()} if wanted else {}
        return [found[name].model_copy(update={"source": "imported"}) for name in dict.fromkeys(wanted)]

    def _written(self) -> Iterator[Pair]:
        for source in self.sources:
            for one in read_set(self.data.path(source.file)):
                self.data.go_on()
                if (pair := _pair(one.value)) is not None:
                    yield pair

    def _rows(self) -> Iterator[Row]:
        with self.data.datasets.path(self.dataset).open("rb") as handle:
            for line in handle:
                self.data.go_on()
                yield json.loads(line)


def room(num_own: int, share: float) -> int | None:
    """How many imported ones may stand beside so many of a round's own, to be at most `share` of all; None: any."""
    return None if share >= 1 else int(num_own * share / (1 - share) + 1e-9)


def _is_pair(row: Row) -> bool:
    """A pair with a weight stays a row: pairs are learned alike, and the weight would be lost."""
    return "id" in row and "weight" not in row


def _pair(value: Any) -> Pair | None:
    if not isinstance(value, dict) or "weight" in value:
        return None
    try:
        return Pair.model_validate({key: item for key, item in value.items() if item is not None})
    except ValidationError:
        return None
