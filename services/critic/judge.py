"""A language model as judge: it never writes; what it would say is read from the probabilities of a few lines.

After the exchange it is asked how likely "Stance: 1", "Stance: 2", … are as its next words. Over the levels of one
criterion these make a distribution, whose mean is the criterion's score; over the words of the verdict, the
outcome. Where it would rather say something else there is nothing to read, and nothing is made up.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.critic.critic import leaning, scored, unscored
from services.critic.form import Form, Line
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import (
    SCORED,
    Comparison,
    ComparisonItem,
    Critique,
    CritiqueItem,
    Failure,
)
from vcllm.contracts.problems import BadRequest, Overloaded, Unavailable
from vcllm.engine.protocol import Conversation, Engine
from vcllm.evaluation.language import is_in

log = logging.getLogger(__name__)

PROMPTS_PER_CALL = 32
"""Between the calls other requests have their turn."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model would complete a line."""

    shares: list[float]
    """Of the options; they sum to 1."""
    mass: float
    """Probability that it is one of the options, once the line is begun."""


class Judge:
    """One language model with the forms it reads, by language."""

    def __init__(self, engine: Engine, forms: Mapping[Language, Form], *, min_mass: float) -> None:
        """min_mass: least probability of all options together for which a line counts as read."""
        self.engine = engine
        self.forms = forms
        self.min_mass = min_mass
        self._turns = Turns(engine)

    async def critique(self, items: Sequence[CritiqueItem]) -> list[Critique]:
        """One critique per item, in order."""
        critiques = [unscored(item, "empty") for item in items]
        for language, form in self.forms.items():
            here = [i for i, item in enumerate(items) if item.language == language and item.response.strip()]
            prompts = [form.critique(items[i].query, items[i].response, items[i].history) for i in here]
            found = await self._turns.read(prompts, [form.verdict, *form.criteria.values()])
            for i, readings in zip(here, found, strict=True):
                critiques[i] = self._critique(items[i], form, readings)
        return critiques

    async def compare(self, items: Sequence[ComparisonItem]) -> list[Comparison]:
        """One comparison per item, asked with either answer in front."""
        comparisons = [Comparison(preferred="unscored")] * len(items)
        for language, form in self.forms.items():
            readable = [bool(item.first.strip() and item.second.strip()) for item in items]
            here = [i for i, item in enumerate(items) if item.language == language and readable[i]]
            orders = [[(items[i].first, items[i].second), (items[i].second, items[i].first)] for i in here]
            prompts = [
                form.comparison(items[i].query, *order, items[i].history)
                for i, both in zip(here, orders, strict=True)
                for order in both
            ]
            found = await self._turns.read(prompts, [form.better])
            for place, i in enumerate(here):
                comparisons[i] = self._comparison(items[i], found[2 * place], found[2 * place + 1])
        return comparisons

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Where each text lies by itself, without a prompt around it."""
        return await self._turns.embed(texts)

    def close(self) -> None:
        self.engine.close()

    def _critique(self, item: CritiqueItem, form: Form, readings: list[Reading] | Failure) -> Critique:
        if isinstance(readings, str):
            return unscored(item, readings)
        verdict, *levels = readings
        if verdict.mass < self.min_mass:
            return unscored(item, "off_scale")
        by_criterion = zip(form.criteria, levels, strict=True)
        criteria = {name: mean_level(level) for name, level in by_criterion if level.mass >= self.min_mass}
        return scored(item, dict(zip(SCORED, verdict.shares, strict=True)), criteria)

    def _comparison(
        self, item: ComparisonItem, forward: list[Reading] | Failure, backward: list[Reading] | Failure
    ) -> Comparison:
        if isinstance(forward, str) or isinstance(backward, str):
            return Comparison(preferred="unscored")
        [one], [other] = forward, backward
        if min(one.mass, other.mass) < self.min_mass:
            return Comparison(preferred="unscored")
        return both_orders(item, one.shares[0], other.shares[1])


class Turns:
    """Scores from one engine, a bounded number of prompts at a time: first come, first served."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = asyncio.Lock()

    async def read(self, prompts: Sequence[str], lines: Sequence[Line]) -> list[list[Reading] | Failure]:
        """For every prompt a reading of each line, or why there is none."""
        conversations = [[ChatMessage(role="user", content=prompt)] for prompt in prompts]
        options = [text for line in lines for text in (line.lead, *line.options)]
        found = await self.scores(conversations, options)
        return [scores if isinstance(scores, str) else list(readings(lines, scores)) for scores in found]

    async def scores(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[list[float] | Failure]:
        """Log-probabilities of the options after every conversation, or why there are none."""
        found: list[list[float] | Failure] = ["outage"] * len(conversations)
        lengths = [sum(len(message.content) for message in conversation) for conversation in conversations]
        for chosen in alike(lengths):
            for i, scores in zip(chosen, await self._ask([conversations[i] for i in chosen], options), strict=True):
                found[i] = scores
        return found

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """What the engine makes of every text; what stops it stops the whole."""
        found: list[list[float]] = [[]] * len(texts)
        for chosen in alike([len(text) for text in texts]):
            async with self._lock:
                vectors = await self.engine.embed([texts[i] for i in chosen])
            for i, vector in zip(chosen, vectors, strict=True):
                found[i] = vector
        return found

    async def _ask(self, conversations: Sequence[Conversation], options: Sequence[str]) -> list[list[float] | Failure]:
        try:
            async with self._lock:  # whoever comes back waits behind those already here
                return list(await self.engine.score(conversations, [options] * len(conversations)))
        except (Unavailable, Overloaded) as outage:
            log.warning("%d prompts could not be read: %s", len(conversations), outage)
            return ["outage"] * len(conversations)
        except BadRequest as refused:
            if refused.code != "context_length_exceeded":
                raise
            if len(conversations) == 1:
                return ["too_long"]
        half = len(conversations) // 2  # the engine does not say which one is too long
        parts = (conversations[:half], conversations[half:])
        return [each for part in parts for each in await self._ask(part, options)]


def alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices for one call each, of texts of similar length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), PROMPTS_PER_CALL):
        yield order[start : start + PROMPTS_PER_CALL]


def readings(lines: Sequence[Line], scores: Sequence[float]) -> Iterator[Reading]:
    """scores: log-probabilities of every line's lead and options, one line after the other."""
    left = iter(scores)
    for line in lines:
        lead = next(left)
        yield read_line(lead, [next(left) for _ in line.options])


def read_line(lead: float, options: Sequence[float]) -> Reading:
    """From log-probabilities. The lead is part of every option, so it cancels out of the shares."""
    best = max(options)
    if best == -math.inf or math.isnan(sum(options) + lead):
        return Reading([1 / len(options)] * len(options), 0.0)
    weights = [math.exp(option - best) for option in options]
    total = sum(weights)
    # A lead in other tokens than it has within the options may be less likely than these are.
    mass = math.exp(min(0.0, best - lead + math.log(total)))
    return Reading([weight / total for weight in weights], mass)


def mean_level(reading: Reading) -> float:
    """From 0, all on the worst level, to 1, all on the best."""
    last = len(reading.shares) - 1
    return min(1.0, sum(place * share for place, share in enumerate(reading.shares)) / last)


def both_orders(item: ComparisonItem, first_in_front: float, first_behind: float) -> Comparison:
    """The two say how likely the first answer is the better one. They must agree, and on an answer that can be read."""
    leans = [2 * share - 1 for share in (first_in_front, first_behind)]
    found = leaning(sum(leans) / 2)
    preferred = item.first if found.preferred == "first" else item.second
    if min(leans) < 0 < max(leans) or not is_in(item.language, preferred):
        return Comparison(preferred="tie", margin=found.margin)
    return found
