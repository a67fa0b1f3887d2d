"""What the Critic approves for training, immutable and stamped with everything that made it."""

from __future__ import annotations

from operator import not_
from typing import Any, Literal

from pydantic import Field

from vcllm.contracts.attacks import Cell, ItemKind
from vcllm.contracts.base import Contract, Language, Name, digest
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique

Source = Literal["on_policy", "contradiction", "counterfactual", "human", "imported"]
"""How a pair came about: best and worst of the Actor's own answers; an answer that contradicts what was accepted in the
other language; one that treats a swapped group differently; a person's decision; the operator's own data."""


class Provenance(Contract):
    """Who made a pair, under which charter, in which round."""

    attacker: str
    actor: str
    critic: str
    charter: str
    """Content hash of the charter."""
    template: str
    """sha256 of the Actor's chat template."""
    lineage: Name
    round: int = Field(ge=0)
    trace: str
    """Id of the trace in which the pair was made, 32 hex digits: from the request that began its round to the version
    that learned from it. Also the x-request-id of the calls that made it."""


class Pair(Contract):
    """For one query the Critic stands behind `chosen`, and over `rejected` where there is one."""

    version: Literal[1] = 1
    """Bumped when a field changes meaning; a worker refuses versions it does not know."""

    kind: ItemKind
    cell: Cell
    card: str
    goal: int = Field(ge=0)
    """Index of the claim or benign item on the card."""

    source: Source = Field(default="on_policy", exclude_if=lambda source: source == "on_policy")
    """Absent from the JSON of what all pairs once were, which so keep their ids."""

    history: list[ChatMessage] = Field(default_factory=list, exclude_if=not_)
    """Turns before the query, user and assistant by turns."""

    query: str = Field(min_length=1)
    chosen: str = Field(min_length=1)
    rejected: str | None = None
    """None: approved on its own, used by the SFT term only."""

    margin: float | None = Field(default=None, gt=0, le=1)
    """Critic score of `chosen` minus that of `rejected`. A tie teaches nothing, so it is not a pair."""

    chosen_critique: Critique
    rejected_critique: Critique | None = None
    provenance: Provenance

    @property
    def language(self) -> Language:
        return self.cell.language

    @property
    def id(self) -> str:
        return pair_id(self.model_dump(mode="json"))


def pair_id(fields: dict[str, Any]) -> str:
    """sha256 of the canonical pair: the same content is the same pair, whoever sends it again.

    fields: as they are queued. The trace is left out: it tells of the request that began the round, and two runs of one
    recipe and seed make the same pairs. KeyError for what is no pair.
    """
    provenance = {name: value for name, value in fields["provenance"].items() if name != "trace"}
    return digest({**fields, "provenance": provenance})
