"""What may not go on from the Attacker to the Actor, each reason counted by name.

Language, validity (the goal came through), duplicates, and contamination: wordings of held-out tactics must not
reach training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vcllm.contracts.attacks import Attack
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Tactic

SIGNATURE = {Language.EN: 14, Language.ZH: 6}
"""Characters of a held-out template that give it away; a Chinese character says as much as a short word."""
CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass
class Sifted:
    """What passed, and how many fell to which filter."""

    kept: list[Attack] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class Sieve:
    """The filters of one run."""

    def __init__(self, held_out: Iterable[Tactic]) -> None:
        self.signatures = {
            language: signatures(held_out_templates(tactics, language), language)
            for tactics in [list(held_out)]
            for language in Language
        }

    def sift(self, attacks: Iterable[Attack]) -> Sifted:
        """Order is kept; the first of several equal queries passes."""
        result = Sifted()
        seen: set[str] = set()
        for attack in attacks:
            reason = self.fault(attack) or ("duplicate" if attack.query in seen else None)
            seen.add(attack.query)
            if reason is None:
                result.kept.append(attack)
            else:
                result.dropped[reason] += 1
        return result

    def fault(self, attack: Attack) -> str | None:
        """Why this attack may not go on; None when it may."""
        language = attack.goal.cell.language
        if attack.refused:
            return "refused"
        if not attack.complete:
            return "cut_off"
        if bool(CJK.search(attack.query)) != (language == Language.ZH):
            return "language"
        if attack.goal.text.casefold() not in attack.query.casefold():
            return "invalid"
        if self.leaks(attack.query, language):
            return "leaked"
        return None

    def leaks(self, query: str, language: Language) -> bool:
        """Whether the query carries a wording of a held-out tactic."""
        size = SIGNATURE[language]
        return any(query[i : i + size] in self.signatures[language] for i in range(len(query) - size + 1))


def held_out_templates(tactics: Iterable[Tactic], language: Language) -> list[str]:
    return [template for tactic in tactics for template in (*tactic.attack[language], *tactic.benign[language])]


def signatures(templates: Iterable[str], language: Language) -> frozenset[str]:
    """Every run of characters of the templates' fixed parts, long enough to give them away."""
    size = SIGNATURE[language]
    parts = [part for template in templates for part in re.split(r"\{\w+\}", template)]
    return frozenset(part[i : i + size] for part in parts for i in range(len(part) - size + 1))
