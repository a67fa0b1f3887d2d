"""The Attacker x Actor matrix: which version of the one still beats which version of the other."""

from __future__ import annotations

from pydantic import Field, model_validator

from vcllm.contracts.base import Contract, Name
from vcllm.contracts.measure import Measure


class Matrix(Contract):
    """Attack success of each Attacker version's kept queries against each Actor version, both oldest first."""

    attackers: list[Name] = Field(min_length=1)
    """Rows: who wrote the queries that were frozen after its round."""
    actors: list[Name] = Field(min_length=1)
    """Columns: who was asked them."""
    cells: list[list[Measure | None]]
    """`cells[attacker][actor]`; None: never asked."""

    @model_validator(mode="after")
    def _one_cell_each(self) -> Matrix:
        if [len(row) for row in self.cells] != [len(self.actors)] * len(self.attackers):
            size = f"{len(self.attackers)} attackers and {len(self.actors)} actors"
            raise ValueError(f"a matrix of {size} needs a row for each attacker and a cell for each actor in it")
        return self
