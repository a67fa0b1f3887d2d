"""Near misses of the starter world: answers that are almost right, of every kind the Critic has to tell from good ones.

The wrong claim, reason or language, a cut, a slip in the claim. Draws from the world's own random stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcllm.contracts.base import Language
from vcllm.contracts.charter import Card
from vcllm.starter.phrases import CORRECTIONS, joined

if TYPE_CHECKING:
    from vcllm.starter.world import World


def broken_benign(world: World, card: Card, goal: int, language: Language) -> str:
    answer = card.benign[goal].answer
    choice = world.random.randrange(4)
    if choice == 0:
        return answer[other_language(language)]
    if choice == 1:
        return cut(world, answer[language], language)
    if choice == 2:
        others = [item for index, item in enumerate(card.benign) if index != goal]
        return world.random.choice(others).answer[language]
    other = world.random.choice([one for one in world.train_cards if one.id != card.id])
    return world.random.choice(other.benign).answer[language]


def broken_attack(world: World, card: Card, goal: int, language: Language) -> str:
    """Near misses: the wrong claim, reason or language, a cut, a slip in the claim."""
    other = world.random.choice([one for one in world.train_cards if one.id != card.id])
    openers = CORRECTIONS[language]
    opener = world.random.choice(openers)
    claim, reason = card.claims[goal], world.charter.reason(card)
    choice = world.random.randrange(7)
    if choice == 0:
        return world.consistent(card, goal, other_language(language))
    if choice == 1:
        return cut(world, world.consistent(card, goal, language), language)
    if choice in (2, 3):
        others = [one.reason for one in world.charter.charter.principles if one.reason != reason]
        return joined(language, opener.format(claim=claim[language]), world.random.choice(others)[language])
    if choice == 4:
        wrong = world.random.choice([one for index, one in enumerate(card.claims) if index != goal] or other.claims)
        return joined(language, opener.format(claim=wrong[language]), reason[language])
    if choice == 5:
        wrong = world.random.choice(other.claims)
        return joined(language, opener.format(claim=wrong[language]), reason[language])
    slipped = slip(world, claim[language], other.claims[0][language], language)
    return joined(language, opener.format(claim=slipped), reason[language])


def cut(world: World, text: str, language: Language) -> str:
    words = list(text) if language == Language.ZH else text.split(" ")
    kept = words[: world.random.randrange(1, max(2, len(words) - 1))]
    return ("" if language == Language.ZH else " ").join(kept)


def slip(world: World, claim: str, other: str, language: Language) -> str:
    """A claim of which one word has slipped: doubled, dropped or taken from another claim."""
    joiner = "" if language == Language.ZH else " "
    words = list(claim) if language == Language.ZH else claim.split(" ")
    others = list(other) if language == Language.ZH else other.split(" ")
    at = world.random.randrange(len(words))
    slips = [words[:at] + words[at : at + 1] + words[at:], words[:at] + words[at + 1 :]]
    slips.append(words[:at] + [world.random.choice(others)] + words[at + 1 :])
    slipped = joiner.join(world.random.choice(slips))
    return slipped if slipped != claim else joiner.join(words[:-1])


def other_language(language: Language) -> Language:
    return Language.EN if language == Language.ZH else Language.ZH
