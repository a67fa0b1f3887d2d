"""The same query about another group: the treatment must not change.

A card lists groups that may stand in for its own "without changing what a fair answer is". Where one of the two
queries is treated worse, its worse answer is rejected; what is chosen is a good answer to that very query. Knows cards
and what was judged, not who asks.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vcllm.alignment.contrasts import Asked, Contrast, LimitsOf, hardest
from vcllm.contracts.attacks import AttackGoal
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Card
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.recipes import CriticPolicy

WORSE = (Outcome.VIOLATING, Outcome.REFUSAL)
"""Treatments that one group meets where another gets a good answer."""
ARTICLE = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)
MIN_PARTS = {Language.EN: 2, Language.ZH: 3}
"""Words, or characters, of a card's own group; what is shorter is too often a part of something else."""
SPARE_PARTS = {Language.EN: 1, Language.ZH: 2}
"""By how many words or characters a name may differ in length from the own group's and be of its kind."""


@dataclass(frozen=True)
class Swap:
    """The original query and the one about another group."""

    original: Asked
    swapped: Asked


def swap(goal: AttackGoal, card: Card, chance: random.Random) -> AttackGoal | None:
    """The goal about another group of the card's list, in its language; None where the words name no group.

    Of an attack the text is changed. Of a harmless look-alike only the claim beside it: the answer to the question is
    a fact of its own group. A query to be varied changes along; a brief is left out, to be written anew.
    """
    language = goal.cell.language
    words = goal.text if goal.kind == "attack" else goal.claim
    choices = [(old, new) for old in _named(words, card, language) for new in _others(old, words, card, language)]
    if not choices:
        return None
    old, new = chance.choice([choice for choice in choices if choice[0] == choices[0][0]])
    field = "text" if goal.kind == "attack" else "claim"
    changed = {
        field: replaced(words, old, new, language),
        "parent": replaced(goal.parent, old, new, language) if goal.kind == "attack" else "",
        "brief": "",
        "swapped": (old, new),
    }
    return goal.model_copy(update=changed)


def find_swaps(asked: Iterable[Asked]) -> list[Swap]:
    """Swapped queries beside those in the card's own words; matched in their order where there are several."""
    found: dict[tuple[object, ...], tuple[list[Asked], list[Asked]]] = defaultdict(lambda: ([], []))
    for one in asked:
        goal = one.attack.goal
        key = goal.kind, goal.card, goal.goal, goal.cell.key, goal.modifiers, goal.num_turns, bool(goal.claim)
        found[key][goal.swapped is not None].append(one)
    sides = (rows for both in found.values() for rows in zip(*both, strict=False))
    return [Swap(original, swapped) for original, swapped in sides]


def counterfactuals(swaps: Iterable[Swap], policy: CriticPolicy, limits: LimitsOf) -> list[Contrast]:
    """For each swap at most one answer: of the query with fewer answers that keep to the charter, where the other has
    one to stand behind. Without a good answer of its own there is no pair."""
    found = []
    for pair in swaps:
        better, worse = sorted((pair.original, pair.swapped), key=_consistent, reverse=True)
        if _consistent(better) == _consistent(worse) or not better.standing(policy, limits).contenders:
            continue
        place = hardest(worse, WORSE, policy, limits)
        if place is not None:
            found.append(Contrast(worse, place, "counterfactual"))
    return found


def own_group(card: Card, language: Language) -> str | None:
    """The card's own group, as topic and claims both name it: the longest beginning of the topic, without its article,
    that stands in two claims at least. None where they share no name."""
    parts = _parts(ARTICLE.sub("", card.topic[language]), language)
    for num in range(len(parts), MIN_PARTS[language] - 1, -1):
        name = re.sub("'s?$", "", ("" if language is Language.ZH else " ").join(parts[:num]))
        if sum(_names(claim[language], name, language) for claim in card.claims) >= 2:
            return name
    return None


def replaced(text: str, old: str, new: str, language: Language) -> str:
    """The text with another group's name, wherever the old one stands; an English article comes and goes with it."""
    if language is Language.ZH:
        return text.replace(old, new)

    def put(found: re.Match[str]) -> str:
        name = new if found["article"] else ARTICLE.sub("", new)
        return name[0].upper() + name[1:] if found.start() == 0 and found[0][0].isupper() else name

    return _pattern(old).sub(put, text)


def _named(text: str, card: Card, language: Language) -> list[str]:
    """Groups the text names: those of the list, the longest first, before the card's own."""
    listed = sorted((group[language] for group in card.counterfactuals), key=len, reverse=True)
    own = own_group(card, language)
    return [name for name in (*listed, *([own] if own else [])) if _names(text, name, language)]


def _others(old: str, text: str, card: Card, language: Language) -> list[str]:
    """What may stand in its place: groups of the list that the text does not name already; in place of the card's own
    only one of its kind, that is, with the same last word (in Chinese: character) and about as long."""
    listed = [group[language] for group in card.counterfactuals]
    others = [name for name in listed if not _names(text, name, language)]
    return others if old in listed else [name for name in others if _of_a_kind(name, old, language)]


def _of_a_kind(name: str, own: str, language: Language) -> bool:
    parts, wanted = _parts(ARTICLE.sub("", name), language), _parts(own, language)
    return parts[-1] == wanted[-1] and abs(len(parts) - len(wanted)) <= SPARE_PARTS[language]


def _names(text: str, name: str, language: Language) -> bool:
    return name in text if language is Language.ZH else _pattern(name).search(text) is not None


def _pattern(name: str) -> re.Pattern[str]:
    """An English name with or without its article, as whole words."""
    return re.compile(rf"(?P<article>\b(?:the|an?)\s+)?\b{re.escape(ARTICLE.sub('', name))}\b", re.IGNORECASE)


def _parts(text: str, language: Language) -> list[str]:
    return list(text) if language is Language.ZH else text.split()


def _consistent(asked: Asked) -> float:
    """Share of consistent answers among those that could be judged."""
    judged = [outcome for outcome in asked.outcomes if outcome is not None]
    return judged.count(Outcome.CONSISTENT) / max(1, len(judged))
