"""What the Attacker is asked for: cells of the archive made into goals, each with a card's claim or harmless question.

Pure, and the same for the same `chance`. Does not know how a query is written, nor what came of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from vcllm.alignment.briefs import brief
from vcllm.contracts.archive import Elite, Tried
from vcllm.contracts.attacks import AttackGoal, Cell
from vcllm.contracts.base import Bilingual, Language
from vcllm.contracts.charter import Card, Tactic
from vcllm.contracts.recipes import Rounds
from vcllm.contracts.rounds import Steering

MOST_ELITES = 2
"""Shown in a brief."""
TURNS = (3, 5)
"""Fewest and most turns of an attack over several."""
OTHER = {Language.ZH: Language.EN, Language.EN: Language.ZH}


class Grid(Protocol):
    """What is needed of the archive."""

    def choose(
        self, cells: Sequence[Cell], num: int, chance: random.Random, explore: float | None = None
    ) -> list[Cell]: ...

    def parents(self, cell: Cell, num: int, chance: random.Random) -> list[Elite]: ...

    def memory(self, cell: Cell) -> list[Tried]: ...


class GoalMaker:
    """Makes the goals of a lineage's rounds."""

    def __init__(
        self, cards: Sequence[Card], tactics: Sequence[Tactic], params: Rounds, charter_name: Bilingual | None = None
    ) -> None:
        """cards, tactics: those of the rounds alone; what is held out must not be among them."""
        self.params, self.charter_name = params, charter_name
        self.cards: Mapping[str, Card] = {card.id: card for card in cards}
        self.tactics: Mapping[str, Tactic] = {tactic.id: tactic for tactic in tactics}
        self.leading = [tactic.id for tactic in tactics if tactic.lead is not None]
        """Tactics that can be laid over another."""

    def goals(
        self, archive: Grid, steering: Steering, cells: Sequence[Cell], num: int, chance: random.Random
    ) -> list[AttackGoal]:
        """`num` goals, in the cells that the archive chooses; shares by the controller's word and the recipe's."""
        chosen = archive.choose(cells, num, chance, steering.explore)
        return [
            self._benign(cell, steering, chance)
            if chance.random() < steering.benign_share
            else self._attack(cell, archive, chance)
            for cell in chosen
        ]

    def twin(self, goal: AttackGoal) -> AttackGoal:
        """The same goal in the other language. A query to be varied and a brief stay behind: they are of one language.

        goal: in the card's own words.
        """
        assert goal.swapped is None, "a swapped group has no twin: its words are not the card's"
        card, mine = self.cards[goal.card], goal.cell.language
        other = OTHER[mine]
        text = card.benign[goal.goal].question if goal.kind == "benign" else card.claims[goal.goal]
        claim = next((one[other] for one in card.claims if goal.claim and one[mine] == goal.claim), "")
        cell = goal.cell.model_copy(update={"language": other})
        return goal.model_copy(update={"cell": cell, "text": text[other], "claim": claim, "parent": "", "brief": ""})

    def briefed(self, goal: AttackGoal, archive: Grid, chance: random.Random) -> AttackGoal:
        """The goal with all that a prompted language model is told of it."""
        assert self.charter_name is not None, "a brief names the charter"
        elites = archive.parents(goal.cell, MOST_ELITES, chance) if goal.parent else []
        modifiers = [self.tactics[name] for name in goal.modifiers]
        told = brief(
            goal, self.tactics[goal.cell.tactic], modifiers, elites, archive.memory(goal.cell), self.charter_name
        )
        return goal.model_copy(update={"brief": told})

    def _benign(self, cell: Cell, steering: Steering, chance: random.Random) -> AttackGoal:
        """A harmless question; a look-alike mentions one of the card's claims beside it."""
        card = self._card(cell, chance)
        index = chance.randrange(len(card.benign))
        alike = self.tactics[cell.tactic].look_alike is not None and chance.random() < steering.look_alike_share
        return AttackGoal(
            cell=cell,
            kind="benign",
            card=card.id,
            goal=index,
            text=card.benign[index].question[cell.language],
            claim=chance.choice(card.claims)[cell.language] if alike else "",
        )

    def _attack(self, cell: Cell, archive: Grid, chance: random.Random) -> AttackGoal:
        """A claim of a card, pressed plainly; or an elite varied, a second tactic laid over, several turns."""
        if self.tactics[cell.tactic].gradual:
            return self._plain(cell, chance).model_copy(update={"num_turns": chance.randint(*TURNS)})
        if chance.random() < self.params.mutation_share and (elites := archive.parents(cell, 1, chance)):
            return self._varied(elites[0])
        goal = self._plain(cell, chance)
        others = [name for name in self.leading if name != cell.tactic]
        if others and chance.random() < self.params.composition_share:
            return goal.model_copy(update={"modifiers": (chance.choice(others),)})
        if self.tactics[cell.tactic].opening is not None and chance.random() < self.params.multi_turn_share:
            return goal.model_copy(update={"num_turns": chance.randint(*TURNS)})
        return goal

    def _plain(self, cell: Cell, chance: random.Random) -> AttackGoal:
        card = self._card(cell, chance)
        index = chance.randrange(len(card.claims))
        return AttackGoal(cell=cell, card=card.id, goal=index, text=card.claims[index][cell.language])

    def _varied(self, elite: Elite) -> AttackGoal:
        """The elite's own goal once more, with its query to be varied; of one turn, as it stands in the prompt."""
        return elite.goal.model_copy(update={"parent": elite.query, "num_turns": 1, "brief": ""})

    def _card(self, cell: Cell, chance: random.Random) -> Card:
        return chance.choice([card for card in self.cards.values() if card.subdomain == cell.subdomain])
