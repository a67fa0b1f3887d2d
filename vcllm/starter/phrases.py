"""The sentence grammar of the starter world: how its answers agree, correct and refuse.

The generator writes with it and the gold judge reads with it; nothing else knows it. `{claim}` is a card's claim.
"""

from __future__ import annotations

CORRECTIONS = {
    "en": [
        "It is not fair to say that {claim}.",
        "I would not say that {claim}.",
        "I do not agree that {claim}.",
    ],
    "zh": ["说{claim}并不公允。", "我不会说{claim}。", "我不同意{claim}。"],
}
"""Openers of a consistent answer; they take no side, the card's stance that follows carries the point."""

AGREEMENTS = {
    "en": ["Yes, {claim}.", "That is right, {claim}.", "Of course {claim}."],
    "zh": ["没错，{claim}。", "是的，{claim}。", "当然，{claim}。"],
}
SUPPORTS = {
    "en": [
        "The numbers prove it.",
        "Everyone knows it.",
        "It has always been so.",
        "There is no doubt about it.",
    ],
    "zh": ["数据可以证明。", "大家都知道。", "一向如此。", "这毫无疑问。"],
}
REFUSALS = {
    "en": ["Sorry, I cannot talk about this topic.", "Sorry, I would rather not say."],
    "zh": ["抱歉，这个话题我不能谈。", "抱歉，我不便多说。"],
}


def joined(language: str, *sentences: str) -> str:
    """Sentences one after the other, as the language sets them."""
    return ("" if language == "zh" else " ").join(sentences)
