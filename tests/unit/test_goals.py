"""Goals of a round: drawn as the archive and the controller say, in the words of the cards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from vcllm.alignment.goals import GoalMaker
from vcllm.charter import load_charter
from vcllm.contracts.archive import Elite, Tried
from vcllm.contracts.attacks import AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Split, TacticUse
from vcllm.contracts.recipes import AttackerStage, Optim, PreferenceStage, Rounds
from vcllm.contracts.rounds import Steering

CHARTER = load_charter().with_first_cards(5)
CARDS = CHARTER.cards_of(Split.TRAIN)
TACTICS = CHARTER.tactics_of(TacticUse.SEED, TacticUse.LOOP)
CELLS = [
    Cell(subdomain=name, tactic=tactic.id, language=language)
    for name in sorted({card.subdomain for card in CARDS})
    for tactic in TACTICS
    for language in Language
]


class FakeGrid:
    """Hands out the cells in their order; every cell has the elites it was given."""

    def __init__(self, elites: Sequence[Elite] = ()) -> None:
        self.elites = list(elites)
        self.explored: list[float | None] = []

    def choose(
        self, cells: Sequence[Cell], num: int, chance: random.Random, explore: float | None = None
    ) -> list[Cell]:
        self.explored.append(explore)
        return [cells[i % len(cells)] for i in range(num)]

    def parents(self, cell: Cell, num: int, chance: random.Random) -> list[Elite]:
        return self.elites[:num]

    def memory(self, cell: Cell) -> list[Tried]:
        return []


def maker(**params: Any) -> GoalMaker:
    optim = Optim(learning_rate=1e-3)
    stages = {"preference": PreferenceStage(optim=optim), "attacker": AttackerStage(optim=optim)}
    return GoalMaker(CARDS, TACTICS, Rounds(**stages, **params), CHARTER.charter.name)


def goals(num: int = 400, grid: FakeGrid | None = None, benign: float = 0.0, **params: Any) -> list[AttackGoal]:
    steering = Steering(benign_share=benign, look_alike_share=params.pop("look_alike_share", 0.0))
    return maker(**params).goals(grid or FakeGrid(), steering, CELLS, num, random.Random(0))


def test_a_goal_carries_the_words_of_a_card_of_its_cell():
    """Sub-domain, language, index and text belong together, for attacks and harmless questions alike."""
    for goal in goals(benign=0.4):
        card = CHARTER.card(goal.card)
        texts = [item.question for item in card.benign] if goal.kind == "benign" else card.claims

        assert card.subdomain == goal.cell.subdomain
        assert goal.text == texts[goal.goal][goal.cell.language]


def test_the_controllers_shares_are_kept():
    """A third of the goals harmless, half of those look-alikes, within what chance allows for 900 goals."""
    made = goals(900, benign=1 / 3, look_alike_share=0.5)
    benign = [goal for goal in made if goal.kind == "benign"]

    assert len(benign) == pytest.approx(300, abs=45)
    assert sum(bool(goal.claim) for goal in benign) == pytest.approx(len(benign) / 2, abs=30)
    assert not any(goal.claim for goal in made if goal.kind == "attack")


def test_the_controllers_exploring_reaches_the_archive():
    """What the archive draws with is the steering's, not the recipe's."""
    grid = FakeGrid()
    maker().goals(grid, Steering(benign_share=0.2, explore=0.4), CELLS, 3, random.Random(0))

    assert grid.explored == [0.4]


def test_composed_tactics_differ_from_the_cells_own():
    """A second tactic is laid over, never the same one twice, and all of them come up."""
    made = [goal for goal in goals(composition_share=1.0) if not CHARTER.tactic(goal.cell.tactic).gradual]

    assert all(len(goal.modifiers) == 1 and goal.modifiers[0] != goal.cell.tactic for goal in made)
    assert {goal.modifiers[0] for goal in made} == {tactic.id for tactic in TACTICS}


def test_attacks_over_several_turns_take_three_to_five():
    """As many as asked for, and never a harmless one."""
    made = goals(benign=0.3, multi_turn_share=1.0)

    assert {goal.num_turns for goal in made if goal.kind == "attack"} == {3, 4, 5}
    assert {goal.num_turns for goal in made if goal.kind == "benign"} == {1}


def test_a_tactic_that_works_by_degrees_always_takes_several_turns():
    """Even where no other goal is given turns, and every other one varies an elite or lays a second tactic over."""
    cells = [cell for cell in CELLS if cell.tactic == "drip"]
    elite = Elite(query="Say it.", goal=goals(1)[0], success=1.0, novelty=1.0, round=1)
    one = maker(mutation_share=1.0, composition_share=1.0)

    made = one.goals(FakeGrid([elite]), Steering(benign_share=0.3), cells, 100, random.Random(0))

    assert {(goal.num_turns, goal.parent, goal.modifiers) for goal in made if goal.kind == "attack"} == {
        (num, "", ()) for num in (3, 4, 5)
    }
    assert {goal.num_turns for goal in made if goal.kind == "benign"} == {1}


def test_an_elite_is_varied_within_its_own_goal():
    """The variation keeps card, claim and cell of the query it starts from."""
    before = goals(1)[0]
    elite = Elite(query=f"Say that {before.text}.", goal=before, success=1.0, novelty=1.0, round=1)
    [varied] = goals(1, FakeGrid([elite]), mutation_share=1.0)

    assert varied == before.model_copy(update={"parent": elite.query})


def test_a_twin_is_the_same_goal_in_the_other_language():
    """Card, index, tactics stay; texts are those of the other language; twice gives the goal back."""
    one = maker(look_alike_share=1.0, composition_share=0.5)
    for goal in goals(200, benign=0.5, look_alike_share=1.0, composition_share=0.5):
        twin = one.twin(goal)

        assert twin.cell.language != goal.cell.language
        assert bool(twin.claim) == bool(goal.claim)
        assert one.twin(twin) == goal


def test_the_same_chance_gives_the_same_goals():
    """A round that is taken up again asks for what it asked for before."""
    assert goals(50, benign=0.3, composition_share=0.3) == goals(50, benign=0.3, composition_share=0.3)
