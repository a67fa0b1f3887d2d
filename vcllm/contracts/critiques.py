"""What the Critic is asked, and its answers: pointwise critiques and pairwise comparisons."""

from __future__ import annotations

from enum import StrEnum
from operator import not_
from typing import Annotated, Literal

from pydantic import Field

from vcllm.contracts.attacks import ItemKind
from vcllm.contracts.base import Contract, Language
from vcllm.contracts.chat import ChatMessage


class Outcome(StrEnum):
    """What an answer is, apart from any score."""

    CONSISTENT = "consistent"
    """Keeps to the charter; for a benign question: helps."""
    VIOLATING = "violating"
    REFUSAL = "refusal"
    """Declines without saying anything on the matter."""
    BROKEN = "broken"
    """Off topic, garbled, cut off or in the wrong language."""
    UNSCORED = "unscored"
    """Nobody could judge it; masked, never counted as a score."""


SCORED = (Outcome.CONSISTENT, Outcome.VIOLATING, Outcome.REFUSAL, Outcome.BROKEN)
"""The classes of a critic head, in the order of its outputs."""

SCORE_PREFIX = "score:"
"""Before the id of a criterion in the names of a critic head's outputs; such an output is a score, not a class."""

MAX_ITEMS = 2048
"""Of one request."""
MAX_QUERY, MAX_RESPONSE, MAX_HISTORY = 8000, 16000, 64
"""Characters, and turns before the query: as many as a chat may have."""

Failure = Literal["too_long", "empty", "outage", "off_scale"]
"""Why an item came back unscored: a closed vocabulary. `off_scale`: the model would have said something else."""


class CritiqueItem(Contract):
    """One answer to judge."""

    query: str = Field(min_length=1, max_length=MAX_QUERY)
    response: str = Field(max_length=MAX_RESPONSE)
    language: Language
    kind: ItemKind = "attack"
    history: list[ChatMessage] = Field(default_factory=list, max_length=MAX_HISTORY, exclude_if=not_)
    """Turns before the query."""


class CritiqueRequest(Contract):
    """`POST /v1/critiques`."""

    items: list[CritiqueItem] = Field(min_length=1, max_length=MAX_ITEMS)
    model: str | None = None
    """A version of the critic; None: the current one."""


class Critique(Contract):
    """The Critic's view of one answer."""

    outcome: Outcome
    score: float | None = Field(default=None, ge=0, le=1)
    """Probability that the answer keeps to the charter, at most what a guard leaves of it; None when unscored."""
    probabilities: dict[Outcome, float] = Field(default_factory=dict)
    criteria: dict[str, float] = Field(default_factory=dict, exclude_if=not_)
    """From 0 (worst) to 1 (best) by the rubric's criterion, as far as the Critic can score them. Absent
    from the JSON when empty: what was judged without keeps its form, and so a pair its id."""
    language_ok: bool = True
    """False: the answer is not in the language of the item."""
    reason: str = ""
    """One sentence in the item's language."""
    failure: Failure | None = None


class CritiqueReply(Contract):
    """In the order of the items."""

    critiques: list[Critique]
    critic_version: str


class ComparisonItem(Contract):
    """Two answers to one query."""

    query: str = Field(min_length=1, max_length=8000)
    first: str = Field(max_length=16000)
    second: str = Field(max_length=16000)
    language: Language
    kind: ItemKind = "attack"
    history: list[ChatMessage] = Field(default_factory=list, max_length=16, exclude_if=not_)
    """Turns before the query."""


class ComparisonRequest(Contract):
    """`POST /v1/comparisons`."""

    items: list[ComparisonItem] = Field(min_length=1, max_length=1024)
    model: str | None = None


class Comparison(Contract):
    """Which answer keeps to the charter better, asked in both orders."""

    preferred: Literal["first", "second", "tie", "unscored"]
    """`tie` also when the two orders disagree."""
    margin: float | None = Field(default=None, ge=0, le=1)
    """Mean over both orders; None when unscored."""


class ComparisonReply(Contract):
    """In the order of the items."""

    comparisons: list[Comparison]
    critic_version: str


class EmbeddingRequest(Contract):
    """`POST /v1/embeddings` of the Critic: where texts lie, by the model that judges them."""

    texts: list[Annotated[str, Field(min_length=1, max_length=8000)]] = Field(min_length=1, max_length=MAX_ITEMS)
    model: str | None = None
    """A version of the critic; None: the current one."""


class EmbeddingReply(Contract):
    """In the order of the texts."""

    embeddings: list[list[float]]
    """One vector of unit length for each text: the mean over its tokens of the model's last hidden states."""
    critic_version: str
