"""A trained head as judge: one class per outcome and a score per criterion, read in one forward pass.

Items are judged in passes of similar length. Requests take turns pass by pass, so a large one delays a small
one by one pass only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.critic.critic import preference, scored, unscored
from vcllm.contracts.critiques import (
    SCORE_PREFIX,
    SCORED,
    Comparison,
    ComparisonItem,
    Critique,
    CritiqueItem,
    Failure,
)
from vcllm.engine.classes import class_probabilities, critic_text
from vcllm.engine.embedding import Sums, add_states, pieces_of
from vcllm.engine.load import Loaded
from vcllm.engine.prompts import encode
from vcllm.engine.scoring import by_length
from vcllm.serving.proof import Refused

MAX_ITEMS_PER_PASS = 128


class Classifier:
    """One loaded critic version."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        config = loaded.model.config
        self.labels = labels_of(config.id2label)
        self.temperature = float(getattr(config, "critic_temperature", 1.0))
        self.temperatures: dict[str, float] = getattr(config, "critic_temperatures", {})
        """By language; where one is missing, `temperature` holds."""
        self._turn = asyncio.Lock()

    async def critique(self, items: Sequence[CritiqueItem]) -> list[Critique]:
        """One critique per item, in order. What is asked twice is read once: answers and comparisons repeat a lot."""
        different = list({_key(item): item for item in items}.values())
        found = dict(zip(map(_key, different), await self._critiques(different), strict=True))
        return [found[_key(item)] for item in items]

    async def _critiques(self, items: Sequence[CritiqueItem]) -> list[Critique]:
        ids = await asyncio.to_thread(self._encode, items)
        failures = [self._failure(item, tokens) for item, tokens in zip(items, ids, strict=True)]
        judged = [i for i, failure in enumerate(failures) if failure is None]
        critiques = [unscored(item, failure or "outage") for item, failure in zip(items, failures, strict=True)]
        for chosen in by_length([len(ids[i]) for i in judged], max_rows=MAX_ITEMS_PER_PASS):
            here = [judged[j] for j in chosen]
            temperatures = [self.temperatures.get(items[i].language, self.temperature) for i in here]
            for i, values in zip(here, await self._pass([ids[i] for i in here], temperatures), strict=True):
                critiques[i] = self._scored(items[i], values)
        return critiques

    async def compare(self, items: Sequence[ComparisonItem]) -> list[Comparison]:
        """One comparison per item. The head sees one answer at a time, so both orders score the same."""
        both = [
            CritiqueItem(
                query=item.query,
                response=response,
                language=item.language,
                kind=item.kind,
                history=item.history,
            )
            for item in items
            for response in (item.first, item.second)
        ]
        critiques = await self.critique(both)
        return [preference(critiques[i].score, critiques[i + 1].score) for i in range(0, len(both), 2)]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Where each text lies by itself, by the model below the head."""
        pieces = await asyncio.to_thread(pieces_of, self.loaded.tokenizer, texts, self.loaded.context)
        sums = Sums()
        for chosen in by_length([len(ids) for _, ids in pieces], max_rows=MAX_ITEMS_PER_PASS):
            async with self._turn:
                await asyncio.to_thread(add_states, sums, self.loaded.model, [pieces[i] for i in chosen])
        return await asyncio.to_thread(sums.vectors)

    def close(self) -> None:
        """Nothing runs between requests."""

    async def _pass(self, ids: list[list[int]], temperatures: list[float]) -> list[list[float]]:
        async with self._turn:  # first come, first served: whoever comes back waits behind those already here
            return await asyncio.to_thread(class_probabilities, self.loaded.model, ids, temperatures)

    def _encode(self, items: Sequence[CritiqueItem]) -> list[list[int]]:
        tokenizer = self.loaded.tokenizer
        texts = [critic_text(tokenizer, item.query, item.response, item.history) for item in items]
        return encode(tokenizer, texts)

    def _failure(self, item: CritiqueItem, tokens: list[int]) -> Failure | None:
        if not item.response.strip():
            return "empty"
        return "too_long" if len(tokens) > self.loaded.context else None

    def _scored(self, item: CritiqueItem, values: list[float]) -> Critique:
        by_label = dict(zip(self.labels, values, strict=True))
        by_outcome = {outcome: by_label.pop(outcome) for outcome in SCORED}
        return scored(item, by_outcome, {label.removeprefix(SCORE_PREFIX): score for label, score in by_label.items()})


def _key(item: CritiqueItem) -> str:
    """The same for items that are the same."""
    return item.model_dump_json()


def labels_of(id2label: dict[int, str]) -> list[str]:
    """The label of every output, in the head's order; Refused when the classes are not those of a critic."""
    labels = [id2label[number] for number in range(len(id2label))]
    classes = [label for label in labels if not label.startswith(SCORE_PREFIX)]
    if sorted(classes) != sorted(SCORED):
        raise Refused(f"A critic needs the classes {', '.join(SCORED)}; this model has {', '.join(classes)}.")
    return labels
