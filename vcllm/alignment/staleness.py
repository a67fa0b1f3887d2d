"""How far the version that answered lags behind the one that learns, and which pairs that leaves.

Rounds that are prepared while another trains are played against the version before. Preference training bears that
within bounds (arXiv 2410.18252). A version nobody knows is refused: counted as fresh, it would pass every bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vcllm.contracts.pairs import Pair, Source
from vcllm.contracts.problems import BadRequest

TIMELESS: tuple[Source, ...] = ("human", "imported")
"""Pairs that people stand behind: none of the lineage's versions answered, or the decision took its time."""


def staleness(version_order: Sequence[str], made_by: str, now: str) -> int:
    """Versions between the one that answered and the one that learns; 0: the same one.

    version_order: what generated in this lineage, in the order of promotion. Counted both ways: after a rollback the
    version that answered may lie ahead. Raises BadRequest for a version that is not among them.
    """
    order = list(dict.fromkeys(version_order))
    for version in (made_by, now):
        if version not in order:
            known = ", ".join(order) or "none"
            raise BadRequest(
                f"Version '{version}' is not in this lineage's order ({known}). "
                "Use pairs in the lineage they were made in, or import them as your own data.",
                param="version",
                code="version_unknown",
            )
    return abs(order.index(now) - order.index(made_by))


def fresh_enough(pairs: Iterable[Pair], order: Sequence[str], now: str, most: int) -> tuple[list[Pair], list[Pair]]:
    """New pairs whose answers are at most `most` versions old, and the others; both in their order.

    Not for replay, which shows old pairs on purpose. What people approved or brought is never too old. Raises
    BadRequest like `staleness`.
    """
    kept: list[Pair] = []
    dropped: list[Pair] = []
    for pair in pairs:
        fresh = pair.source in TIMELESS or staleness(order, pair.provenance.actor, now) <= most
        (kept if fresh else dropped).append(pair)
    return kept, dropped
