"""What may not go on from the Attacker to the Actor, each reason counted by name.

Language, validity (the goal came through), repetitions, and contamination: wordings of held-out tactics must not reach
training. Looks at texts alone; whether an attack is any good is for the Critic to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from vcllm.alignment.faithful import carried
from vcllm.contracts.attacks import Attack, AttackGoal
from vcllm.contracts.base import Language
from vcllm.contracts.charter import SLOTS, Tactic, Templates

Reason = Literal[
    "refused",
    "cut_off",
    "empty",
    "too_long",
    "language",
    "invalid",
    "unfaithful",
    "leaked",
    "repeats_parent",
    "duplicate",
]
"""`invalid`: the goal's text does not stand in the query. `unfaithful`: too little of it came through, where it may be
reworded. `leaked`: a wording of a held-out tactic. `repeats_parent`: what was to be varied came back unchanged."""

SIGNATURE = {Language.EN: 14, Language.ZH: 6}
"""Characters of a held-out template that give it away; a Chinese character says as much as a short word."""
MAX_CHARACTERS = 2000
"""Of a query."""
CARRIED_ABOVE = 0.5
"""Share of the goal's content of which a query that may put it in other words has more. Exactly half is often a group's
name and nothing else: were it enough, one English claim in three would pass for another one of its card."""
CJK = re.compile(r"[\u4e00-\u9fff]")
LATIN = re.compile(r"[A-Za-z]+")


@dataclass
class Sifted:
    """What passed, and how many fell to which filter."""

    kept: list[Attack] = field(default_factory=list)
    dropped: Counter[Reason] = field(default_factory=Counter)


class Sieve:
    """The filters of one run."""

    def __init__(self, held_out: Iterable[Tactic]) -> None:
        tactics = list(held_out)
        self.signatures = {
            language: signatures(held_out_templates(tactics, language), language) for language in Language
        }

    def sift(self, attacks: Iterable[Attack]) -> Sifted:
        """Order is kept; of several that pass and are equal with their history, the first stays."""
        result = Sifted()
        seen: set[tuple[str, ...]] = set()
        for attack in attacks:
            said = (*(message.content for message in attack.history), attack.query)
            reason = self.fault(attack) or ("duplicate" if said in seen else None)
            if reason is None:
                seen.add(said)
                result.kept.append(attack)
            else:
                result.dropped[reason] += 1
        return result

    def fault(self, attack: Attack) -> Reason | None:
        """The first reason why this attack may not go on; None when it may."""
        return next(self._faults(attack), None)

    def _faults(self, attack: Attack) -> Iterator[Reason]:
        goal, query = attack.goal, attack.query
        language = goal.cell.language
        turns = [*(message.content for message in attack.history if message.role == "user"), query]
        if attack.refused:
            yield "refused"
        if not attack.complete:
            yield "cut_off"
        if not query.strip():
            yield "empty"
        if len(query) > MAX_CHARACTERS:
            yield "too_long"
        if not all(is_in(language, turn) for turn in turns):
            yield "language"
        if lost := lost_goal(goal, query):
            yield lost
        if any(self.leaks(turn, language) for turn in turns):
            yield "leaked"
        if goal.parent and normal(query) == normal(goal.parent):
            yield "repeats_parent"

    def leaks(self, query: str, language: Language) -> bool:
        """Whether the query carries a wording of a held-out tactic."""
        size, query = SIGNATURE[language], query.casefold()
        return any(query[i : i + size] in self.signatures[language] for i in range(len(query) - size + 1))


def is_in(language: Language, text: str) -> bool:
    """English has no Chinese character; Chinese has at least as many as words in Latin letters, such as a name."""
    num = len(CJK.findall(text))
    return num >= max(1, len(LATIN.findall(text))) if language == Language.ZH else not num


def lost_goal(goal: AttackGoal, query: str) -> Reason | None:
    """Whether the text, or the claim that a look-alike mentions, is missing; who was given a brief may reword both."""
    wanted = [goal.text, goal.claim] if goal.claim else [goal.text]
    if not goal.brief:
        return None if all(text.casefold() in query.casefold() for text in wanted) else "invalid"
    shares = [carried(text, query, goal.cell.language) for text in wanted]
    return None if min(shares) > CARRIED_ABOVE else "unfaithful"


def normal(text: str) -> str:
    """Case and white space make no other query."""
    return " ".join(text.casefold().split())


def held_out_templates(tactics: Iterable[Tactic], language: Language) -> list[str]:
    """Every wording of the tactics, of whichever kind."""
    kinds: list[Templates | None] = [getattr(tactic, kind) for tactic in tactics for kind in SLOTS]
    return [template for templates in kinds if templates is not None for template in templates[language]]


def signatures(templates: Iterable[str], language: Language) -> frozenset[str]:
    """Every run of characters of the templates' fixed parts, long enough to give them away, whatever the case."""
    size = SIGNATURE[language]
    parts = [part.casefold() for template in templates for part in re.split(r"\{\w+\}", template)]
    return frozenset(part[i : i + size] for part in parts for i in range(len(part) - size + 1))
