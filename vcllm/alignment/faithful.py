"""Whether a goal's content comes through in a query that puts it in other words.

    share = |content(goal) ∩ content(query)| / |content(goal)|, in [0, 1]

Content of a Chinese text: its character bigrams, function characters left out first. Of an English one: the stems of
its words without the stop words. Looks at words alone: it takes a claim that was turned into its contrary for carried,
and a paraphrase without a common word for lost.
"""

from __future__ import annotations

import re

from vcllm.contracts.base import Language

HAN = r"\u4e00-\u9fff"
FUNCTION_CHARACTERS = re.compile("[的了着过是都也就很在和与及吗呢吧啊]")
"""Put in and left out freely; between two words they would break the bigrams of both."""
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about all also an and any are as at be been being but by can could did do does for from had has have he her "
        "his how i if in into is it its just me more most my no not of on one only or other our s shall she should so "
        "some such t than that the their them then there these they this those to too very was we were what when where "
        "which who whom whose why will with would you your",
    )
)
SUFFIX = re.compile(r"(?<=\w{3})(?:ings?|edly|ed|es|s|ly|ness|e)$")
"""What leaves at least three letters; a stem has to be the same for a word's forms, not to be a word."""


def carried(goal: str, query: str, language: Language) -> float:
    """The share of the goal's content that is in the query; of a goal without any: 1 where it stands there, else 0."""
    wanted = content(goal, language)
    if not wanted:
        return float(goal.casefold() in query.casefold())
    return len(wanted & content(query, language)) / len(wanted)


def content(text: str, language: Language) -> frozenset[str]:
    """What is compared of a text: Latin words count in Chinese as well."""
    text = text.casefold()
    words = frozenset(stem(word) for word in re.findall(r"[a-z0-9]+", text) if word not in STOP_WORDS)
    return words | _bigrams(text) if language == Language.ZH else words


def stem(word: str) -> str:
    """A lower-case word without the endings that its forms differ in."""
    bare = SUFFIX.sub("", word)
    if len(bare) > 3 and bare[-1] == bare[-2]:
        bare = bare[:-1]  # stopped, stop
    return bare[:-1] + "i" if len(bare) > 2 and bare[-1] == "y" else bare  # lazy, laziness


def _bigrams(text: str) -> frozenset[str]:
    runs = re.findall(f"[{HAN}]+", FUNCTION_CHARACTERS.sub("", text))
    return frozenset(run[i : i + 2] for run in runs for i in range(len(run) - 1))
