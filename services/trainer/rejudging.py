"""Pairs of earlier rounds before they are shown again: judged once more where the Critic has been fitted since.

What a newer Critic says of a pair is decided in `vcllm.alignment.rescoring`; here it is asked, and its word is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.trainer.context import Context
from vcllm.alignment.rescoring import rescored
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import MAX_ITEMS, Critique, CritiqueItem, CritiqueRequest
from vcllm.contracts.pairs import Pair


def still_good(
    context: Context, pairs: Sequence[Pair], critic: str, limits: Mapping[Language, Limits], number: int
) -> list[Pair]:
    """The pairs that `critic` stands behind, in their order. Those it approved itself it is not asked about; what it
    cannot judge stays. The pairs are only left out of the replay: nothing stored changes."""
    file = f"rounds/round-{number}/withdrawn.json"
    if (withdrawn := context.recall(file)) is None:
        old = [pair for pair in pairs if pair.provenance.critic != critic]
        withdrawn = _withdrawn(context, old, critic, limits) if old else {}
        context.keep(file, withdrawn)
    return [pair for pair in pairs if pair.id not in withdrawn]


def _withdrawn(
    context: Context, pairs: Sequence[Pair], critic: str, limits: Mapping[Language, Limits]
) -> dict[str, str]:
    """Pair id to the reason."""
    chosen = _critiques(context, [_item(pair, pair.chosen) for pair in pairs], critic)
    with_other = [pair for pair in pairs if pair.rejected is not None]
    found = iter(_critiques(context, [_item(pair, pair.rejected or "") for pair in with_other], critic))
    rejected = [None if pair.rejected is None else next(found) for pair in pairs]
    return {pair.id: reason for pair, reason in rescored(pairs, chosen, rejected, limits).withdrawn}


def _critiques(context: Context, items: Sequence[CritiqueItem], critic: str) -> list[Critique]:
    found: list[Critique] = []
    for begin in range(0, len(items), MAX_ITEMS):
        request = CritiqueRequest(items=list(items[begin : begin + MAX_ITEMS]), model=critic)
        found += context.critic.critiques(request, trace=None).critiques
    return found


def _item(pair: Pair, answer: str) -> CritiqueItem:
    return CritiqueItem(query=pair.query, response=answer, language=pair.language, kind=pair.kind, history=pair.history)
