"""The frozen evaluation items of the starter world: the same for every stage of a run.

Every item exists in both languages (same card, claim, tactic and template number). `test` uses the held-out tactics
and cards and is for reporting only; `dev` uses its own tactics and cards and is what doses, thresholds and the
promotion gate may look at.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from vcllm.charter import LoadedCharter
from vcllm.contracts.attacks import ItemKind
from vcllm.contracts.base import Language, digest
from vcllm.contracts.charter import Card, Split, Tactic, TacticUse
from vcllm.contracts.evaluation import EvalItem, Suite
from vcllm.contracts.recipes import EvaluationParams, WorldDial
from vcllm.starter.phrases import joined

GATE_SHARE = 0.3
"""The gate asks this share of the report's number of items; it decides on the dev split, never on the test split."""

Combination = tuple[Card, int, Tactic, int]
"""Card, claim or benign item, tactic, template."""


def items_of_run(
    charter: LoadedCharter, params: EvaluationParams, dial: WorldDial | None = None
) -> tuple[list[EvalItem], list[EvalItem]]:
    """What one pipeline asks: the report's items, and the gate's."""
    num_gate = max(10, round(GATE_SHARE * params.num_items))
    report = evaluation_items(charter, params.split, params.num_items, params.seed, dial)
    return report, evaluation_items(charter, "dev", num_gate, params.seed + 1, dial)


def evaluation_items(
    charter: LoadedCharter, split: str, num_pairs: int, seed: int, dial: WorldDial | None = None
) -> list[EvalItem]:
    """`num_pairs` zh/en pairs of each suite, fewer where the world has fewer combinations.

    dial: gives shares of harmless look-alikes and of composed tactics, by a random stream of their own: the plain
    items are the same with and without.
    """
    dial, harder = dial or WorldDial(), random.Random(f"dial-{split}-{seed}")
    tactic_use, card_split = (TacticUse.TEST, Split.TEST) if split == "test" else (TacticUse.DEV, Split.DEV)
    seen, held_out = charter.tactics_of(TacticUse.SEED), charter.tactics_of(tactic_use)
    train, held_cards = charter.cards_of(Split.TRAIN), charter.cards_of(card_split)
    chance = random.Random(f"suite-{split}-{seed}")
    suites: list[tuple[Suite, list[Combination]]] = [
        ("seen", _attacks(train, seen)),
        ("held_out", _attacks(train, held_out)),
        ("held_out_cards", _attacks(held_cards, held_out)),
        ("benign", _benign((*train, *held_cards), held_out)),
    ]
    items: list[EvalItem] = []
    for suite, combinations in suites:
        for combination in chance.sample(combinations, min(num_pairs, len(combinations))):
            items.extend(_twins(suite, combination, _harder(suite, combination, held_out, dial, harder)))
    return items


def with_system_prompt(items: Iterable[EvalItem]) -> list[EvalItem]:
    """The same questions, to be asked with the charter as system message."""
    return [item.model_copy(update={"system": True}) for item in items]


def _attacks(cards: tuple[Card, ...], tactics: tuple[Tactic, ...]) -> list[Combination]:
    return [
        (card, goal, tactic, template)
        for card in cards
        for goal in range(len(card.claims))
        for tactic in tactics
        for template in range(min(len(tactic.attack.zh), len(tactic.attack.en)))
    ]


def _benign(cards: tuple[Card, ...], tactics: tuple[Tactic, ...]) -> list[Combination]:
    return [
        (card, goal, tactic, template)
        for card in cards
        for goal in range(len(card.benign))
        for tactic in tactics
        for template in range(min(len(tactic.benign.zh), len(tactic.benign.en)))
    ]


@dataclass(frozen=True)
class Harder:
    """What the dial adds to an item."""

    claim: int | None = None
    """Of a look-alike: the claim it mentions."""
    lead: tuple[Tactic, int] | None = None
    """Of a composition: the second tactic, and which of its leads."""


def _harder(
    suite: Suite, combination: Combination, tactics: tuple[Tactic, ...], dial: WorldDial, chance: random.Random
) -> Harder:
    """Two draws for every item, whatever comes of them."""
    card, _, tactic, _ = combination
    happens, choice = chance.random(), chance.randrange(10**6)
    if suite == "benign":
        alike = tactic.look_alike is not None and happens < dial.look_alikes
        return Harder(claim=choice % len(card.claims)) if alike else Harder()
    leads = [one for one in tactics if one.lead is not None and one.id != tactic.id]
    if suite == "seen" or not leads or happens >= dial.compositions:
        return Harder()
    return Harder(lead=(leads[choice % len(leads)], choice))


def _twins(suite: Suite, combination: Combination, harder: Harder) -> list[EvalItem]:
    card, goal, tactic, template = combination
    marks = [harder.claim] if harder.claim is not None else [harder.lead[0].id] if harder.lead else []
    pair_id = digest([suite, card.id, goal, tactic.id, template, *marks])[:16]
    kind: ItemKind = "benign" if suite == "benign" else "attack"
    return [
        EvalItem(
            id=f"{pair_id}-{language}",
            pair_id=pair_id,
            language=language,
            kind=kind,
            suite=suite,
            card=card.id,
            goal=goal,
            subdomain=card.subdomain,
            tactic=tactic.id,
            query=_query(kind, combination, harder, language),
        )
        for language in Language
    ]


def _query(kind: ItemKind, combination: Combination, harder: Harder, language: Language) -> str:
    card, goal, tactic, template = combination
    if kind == "benign":
        question = card.benign[goal].question[language]
        if harder.claim is None or tactic.look_alike is None:
            return tactic.benign[language][template].format(question=question)
        templates = tactic.look_alike[language]
        return templates[template % len(templates)].format(question=question, claim=card.claims[harder.claim][language])
    query = tactic.attack[language][template].format(claim=card.claims[goal][language])
    if harder.lead is None:
        return query
    second, place = harder.lead
    assert second.lead is not None, "only tactics with a lead are laid over another"
    leads = second.lead[language]
    return joined(language, leads[place % len(leads)], query)
