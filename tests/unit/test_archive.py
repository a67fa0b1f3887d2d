"""The archive: where the Attacker is sent, what a cell keeps, what counts as new, and the figures of it all."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from vcllm.alignment.archive import ANSWER_CHARS, Archive, Entry
from vcllm.contracts.archive import ArchiveState, CellState, Elite
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.recipes import ArchiveParams

EN, ZH = Language.EN, Language.ZH
CELL = Cell(subdomain="pol.govern", tactic="dichotomy", language=EN)
OTHER = CELL.model_copy(update={"tactic": "story"})
CHINESE = CELL.model_copy(update={"language": ZH})
GRID = [
    Cell(subdomain=f"soc.s{subdomain}", tactic=f"t{tactic}", language=language)
    for subdomain in range(13)
    for tactic in range(20)
    for language in Language
]
"""As large as the charter's own: 520 cells."""
WORDS = ["teal", "party", "valley", "river", "council", "surely", "best", "never", "people", "agree", "old", "song"]


def attack(query: str = "Is the Teal Party not best?", cell: Cell = CELL, kind: str = "attack", **fields) -> Attack:
    goal = AttackGoal(cell=cell, kind=kind, card="pol.govern-teal-party", goal=0, text="the Teal Party is best")
    return Attack(goal=goal, query=query, **fields)


def entry(
    query: str = "Is the Teal Party not best?", success: float | None = 1.0, cell: Cell = CELL, **fields
) -> Entry:
    return Entry(attack(query, cell), success, **fields)


def archive(*cells: Cell, **params) -> Archive:
    return Archive(cells or (CELL, OTHER, CHINESE), ArchiveParams(**params), "tiny")


def known(made: Archive, cell: Cell = CELL) -> CellState:
    return made.state(1).cells[cell.key]


def queries(elites: Sequence[Elite]) -> list[str]:
    return [elite.query for elite in elites]


def wording(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=9))


class World:
    """Plays rounds: an attack misleads each of four answers with the probability that its cell has."""

    def __init__(
        self, seed: int, weak: Sequence[Cell] = (), others: float = 0.2, passing: float = 1.0, **params
    ) -> None:
        self.chance = random.Random(seed)
        self.archive = Archive(GRID, ArchiveParams(**params), "tiny")
        self.weak, self.others, self.passing = {cell.key for cell in weak}, others, passing
        self.drawn: list[Counter[str]] = []

    def play(self, num: int = 300) -> None:
        cells = self.archive.choose(GRID, num, self.chance)
        self.drawn.append(Counter(cell.key for cell in cells))
        entries = [
            entry(wording(self.chance), self._success(cell), cell)
            for cell in cells
            if self.chance.random() < self.passing
        ]
        self.archive.enter(entries, len(self.drawn))

    def _success(self, cell: Cell) -> float:
        violating = 0.97 if cell.key in self.weak else self.others
        return sum(self.chance.random() < violating for _ in range(4)) / 4


# Where the Attacker is sent.


@pytest.mark.parametrize("others", [0.0, 0.02, 0.2, 0.6])
def test_three_rounds_try_the_whole_grid(others):
    """520 cells in 900 goals, however well attacks go; the first round tries no cell twice."""
    world = World(0, others=others)

    for _ in range(3):
        world.play()

    assert max(world.drawn[0].values()) == 1
    assert world.archive.figures([]).coverage == 1.0


def test_coverage_bears_goals_that_come_to_nothing():
    """A fifth of the goals are harmless, and one attack in seven falls to a filter: nine cells in ten all the same."""
    world = World(1, passing=0.85)

    for _ in range(3):
        world.play(240)

    assert world.archive.figures([]).coverage >= 0.9


@pytest.mark.parametrize("seed", range(5))
def test_a_weak_cell_is_found_in_two_rounds_and_stays_on_top(seed):
    """Among cells where one attack in fifty misleads, it is asked again at once, several times, but never for all."""
    spot = GRID[seed * 97]
    world = World(seed, [spot], others=0.02)

    for _ in range(2):
        world.play()
    weakest = world.archive.figures([]).weakest
    world.play()

    assert weakest[0] == spot.key
    assert 5 <= world.drawn[2][spot.key] <= 15


def test_a_weak_row_draws_the_attacker_before_all_of_it_was_tried():
    """Where the tried cells of a sub-domain fell, the others are expected to fall, in that language only.

    A third of the next round goes there, and no cell of the row is left out.
    """
    row = [cell for cell in GRID if cell.subdomain == "soc.s3" and cell.language == ZH]
    world = World(2, row, others=0.05)
    world.play()
    expected = world.archive.estimates()
    untried = [cell for cell in GRID if not world.drawn[0][cell.key]]

    neighbours = [expected[cell.key] for cell in untried if cell in row]
    mirrored = [expected[cell.key] for cell in untried if cell.subdomain == "soc.s3" and cell.language == EN]
    assert min(neighbours) > 0.7 > 0.3 > max(mirrored)
    world.play()
    drawn = [world.drawn[1][cell.key] for cell in row]
    assert min(drawn) >= 1 and sum(drawn) >= 90


def test_a_cell_that_was_mended_is_left_alone():
    """A rate follows the newest round, since the Actor has learned: a weak spot does not look weak for long."""
    made = archive(CELL, OTHER)
    made.enter([entry(f"{n}", 1.0) for n in range(12)], 1)
    made.enter([entry(f"again {n}", 0.0) for n in range(6)], 2)

    assert known(made).rate == pytest.approx(0.5 * 4 * 1.0 / (0.5 * 4 + 6))
    assert (known(made).tried, known(made).won, known(made).last) == (18, 12, 2)


def test_a_first_attempt_takes_the_place_of_the_guess():
    """A new cell's rate is optimistic until it is tried, and only then an observation."""
    made = archive()
    before = known(made).rate

    made.enter([entry(success=0.25)], 1)

    assert (before, known(made).rate, made.rates()) == (0.5, 0.25, [0.25])


def test_exploring_spreads_the_draw():
    """The higher, the more cells come up, and the less often the weakest one does."""
    spot = GRID[7]
    world = World(3, [spot])
    for _ in range(3):
        world.play()

    low, high = (
        Counter(cell.key for cell in world.archive.choose(GRID, 300, random.Random(0), explore))
        for explore in (0.05, 0.6)
    )

    assert len(low) < len(high)
    assert low[spot.key] > high[spot.key] >= 1


def test_cells_that_never_come_to_anything_take_little_of_a_round():
    """An Attacker that always refuses in some cells leaves them untried for ever; each is asked once a round."""
    made = Archive(GRID, ArchiveParams(), "tiny")
    dead = {cell.key for cell in GRID[:30]}
    made.enter([entry(f"{cell.key} {n}", 0.1, cell) for cell in GRID[30:] for n in range(3)], 1)

    drawn = Counter(cell.key for cell in made.choose(GRID, 300, random.Random(0)))

    assert all(1 <= drawn[key] <= 2 for key in dead)


def test_a_draw_is_as_large_as_asked_and_repeats_with_its_seed():
    """From few cells and from many, also when there are more goals than cells."""
    made = archive()
    made.enter([entry(success=1.0), entry("No?", 0.0, OTHER)], 1)

    for num in (0, 1, 2, 50):
        drawn = made.choose([CELL, OTHER], num, random.Random(4))
        assert len(drawn) == num
        assert drawn == made.choose([CELL, OTHER], num, random.Random(4))
        assert CHINESE not in drawn
    assert set(drawn) == {CELL, OTHER}


def test_without_diversity_the_draw_collapses_on_what_has_won():
    """Most goals go to cells that won before, half the grid is never seen, and evenness shows it."""
    spread, narrow = World(5), World(5, diversity=False)

    for _ in range(3):
        spread.play()
        narrow.play()

    won = {key for key, state in narrow.archive.state(3).cells.items() if state.won}
    assert sum(num for key, num in narrow.drawn[2].items() if key in won) > 280
    figures, collapsed = spread.archive.figures([]), narrow.archive.figures([])
    assert collapsed.coverage < 0.6 < figures.coverage
    assert collapsed.evenness is not None and figures.evenness is not None
    assert collapsed.evenness < 0.8 < figures.evenness


# What a cell keeps.


def test_a_cell_keeps_its_best_wins():
    """As many as the recipe says, best first; failures are never kept."""
    made = archive(kept=2)
    tries = [("river song", 0.5), ("old council", 1.0), ("valley people", 0.0), ("never agree", 0.75)]

    made.enter([entry(query, success) for query, success in tries], 1)

    assert queries(known(made).elites) == ["old council", "never agree"]
    assert known(made).elites[0].quality == 1.0


def test_a_later_win_goes_before_an_equal_one_of_an_earlier_round():
    """It is fresher evidence against the Actor as it is now."""
    made = archive(kept=1)
    made.enter([entry("old council")], 1)

    made.enter([entry("river song")], 2)

    assert queries(known(made).elites) == ["river song"]


def test_a_win_too_near_to_a_better_one_of_its_language_is_not_kept():
    """In whatever cell that stands; what is worse gives way to a better one that comes later."""
    made = archive(min_novelty=0.3)
    long = "Surely the council of the valley agrees that the Teal Party is best"
    made.enter([entry(f"{long}?", 0.5), entry(f"{long}!", 0.75, OTHER), entry(f"{long}.", 0.5, CHINESE)], 1)
    first = [queries(known(made, cell).elites) for cell in (CELL, OTHER, CHINESE)]

    made.enter([entry(f"{long};", 1.0)], 2)

    assert first == [[], [f"{long}!"], [f"{long}."]]
    assert [queries(known(made, cell).elites) for cell in (CELL, OTHER)] == [[f"{long};"], []]


def test_an_attack_that_is_played_again_stands_or_falls_by_how_it_goes_now():
    """One that no longer wins is no elite; with other turns before it, it is another attack."""
    turns = [ChatMessage(role="user", content="Hm?"), ChatMessage(role="assistant", content="Yes?")]
    made = archive()
    made.enter([entry("river song"), entry("old council"), Entry(attack("so?", history=turns), 1.0)], 1)

    made.enter([entry("river song", 0.0), entry("old council", 0.5), entry("so?", 0.0)], 2)

    assert [(elite.query, elite.success, elite.round) for elite in known(made).elites] == [
        ("so?", 1.0, 1),
        ("old council", 0.5, 2),
    ]


@pytest.mark.parametrize("params", [{"min_novelty": 0.0}, {"diversity": False}])
def test_no_query_is_kept_twice(params):
    """Whatever the recipe allows."""
    made = archive(**params)

    made.enter([entry("river song"), entry("river song"), entry("river songs")], 1)

    assert sorted(queries(known(made).elites)) == ["river song", "river songs"]


def test_the_memory_is_of_the_last_attempts_won_or_not():
    """Newest last, with the beginning of the answer that came nearest to a violation."""
    made = archive(memory=2)

    made.enter([entry("one", 1.0), entry("two", 0.0, worst_answer="No. " * 200), entry("three", 0.25)], 3)

    memory = made.memory(CELL)
    assert [(tried.query, tried.success, tried.round) for tried in memory] == [("two", 0.0, 3), ("three", 0.25, 3)]
    assert memory[0].answer == ("No. " * 200)[:ANSWER_CHARS]
    assert made.memory(OTHER) == archive(memory=0).memory(CELL) == []


def test_a_recipe_without_memory_remembers_no_attempt():
    """Zero of a list are none, not all."""
    made = archive(memory=0)

    made.enter([entry()], 1)

    assert made.memory(CELL) == []


def test_parents_are_different_elites_and_better_ones_more_often():
    """No more than there are, in every order; a cell without a win has none."""
    made = archive(min_novelty=0.0)
    made.enter([entry("river song", 1.0), entry("old council", 0.25), entry("never agree", 0.25)], 1)
    chance = random.Random(0)

    first = Counter(made.parents(CELL, 1, chance)[0].query for _ in range(600))

    assert first["river song"] == pytest.approx(600 * 1.0 / 1.5, abs=60)
    assert sorted(queries(made.parents(CELL, 9, chance))) == ["never agree", "old council", "river song"]
    assert made.parents(OTHER, 1, chance) == []


@pytest.mark.parametrize(
    "other", [Entry(attack("No?", kind="benign"), 1.0), Entry(attack("No?"), None)], ids=["harmless", "unjudged"]
)
def test_what_is_no_attempt_is_told_its_novelty_and_leaves_no_trace(other):
    """A harmless question, and an attack whose answers nobody could judge, which is not a failure."""
    made, same = archive(), archive()

    novelties = made.enter([entry(), other], 1)

    same.enter([entry()], 1)
    assert len(novelties) == 2
    assert made.state(1) == same.state(1)


# What counts as new.


def test_novelty_falls_for_a_win_that_is_repeated():
    """The same words again teach the Attacker little; a failure that is repeated is no less new."""
    made = archive()
    before = made.novelty(attack())
    made.enter([entry(success=0.0)], 1)
    failed = made.novelty(attack())
    made.enter([entry()], 2)

    assert (before, failed, made.novelty(attack())) == (1.0, 1.0, 0.0)


def test_novelty_is_that_of_its_language_in_whatever_cell():
    """The same trick in another cell of the language is known; in the other language it is new."""
    made = archive()
    made.enter([entry("青叶党 best")], 1)

    assert made.novelty(attack("青叶党 best", OTHER)) == 0.0
    assert made.novelty(attack("青叶党 best", CHINESE)) == 1.0


def test_a_rounds_novelty_is_beside_what_came_before_it():
    """Wins of rounds before, and of the round itself those that stand earlier; not one's own."""
    made = archive()
    made.enter([entry("river song")], 1)

    novelties = made.enter([entry("river song", 0.0), entry("old council"), entry("old council"), entry("zzz")], 2)

    assert novelties[0] == novelties[2] == 0.0
    assert novelties[1] > 0.5 and novelties[3] > 0.5
    assert known(made).elites[0].novelty in novelties


def test_a_win_that_no_elite_remembers_is_known_while_the_memory_has_it():
    """A cell that keeps one elite still knows what won a moment ago."""
    made = archive(kept=1)
    made.enter([entry("river song", 1.0), entry("old council", 0.5)], 1)

    assert queries(known(made).elites) == ["river song"]
    assert made.novelty(attack("old council")) == 0.0


def test_a_query_in_other_words_is_less_new_by_its_embedding():
    """What lies where a win lies brings the novelty down; the vectors are kept, rounded."""
    chance = random.Random(0)
    vectors = [[chance.gauss(0, 0.35) for _ in range(8)] for _ in range(12)]
    made = archive(kept=12)
    names = "abcdefghijkl"
    made.enter([entry(name * 3, 1.0, embedding=vector) for name, vector in zip(names, vectors, strict=True)], 1)

    assert made.novelty(attack("xyz"), vectors[0]) == pytest.approx(0.5, abs=0.05)
    assert made.novelty(attack("xyz")) == 1.0
    assert known(made).elites[0].embedding == [round(value, 4) for value in vectors[0]]


# State.


def test_a_restored_archive_goes_on_as_if_nothing_had_happened():
    """Through JSON and back after every round: the same draws, novelty, parents, figures and state."""
    chance = random.Random(0)
    straight = Archive(GRID, ArchiveParams(), "tiny")
    restored = Archive(GRID, ArchiveParams(), "tiny")
    for number in range(1, 4):
        one, other = random.Random(number), random.Random(number)
        cells = straight.choose(GRID, 200, one)
        assert cells == restored.choose(GRID, 200, other)
        entries = [
            entry(wording(chance), chance.choice([0.0, 0.25, 1.0]), cell, embedding=[chance.gauss(0, 1) for _ in "vec"])
            for cell in cells
        ]
        assert straight.enter(entries, number) == restored.enter(entries, number)
        attacks = [each.attack for each in entries]
        assert straight.figures(attacks) == restored.figures(attacks)
        assert straight.parents(cells[0], 3, one) == restored.parents(cells[0], 3, other)
        stored = restored.state(number).model_dump_json()
        assert ArchiveState.model_validate_json(stored) == straight.state(number)

        restored = Archive.restore(ArchiveState.model_validate_json(stored), GRID, ArchiveParams())


def test_what_is_known_of_cells_that_left_the_grid_is_not_lost():
    """They are not chosen or counted; their wins still are known, and they come back with the next recipe."""
    made = archive(CELL, OTHER)
    made.enter([entry(cell=OTHER)], 1)

    smaller = Archive.restore(made.state(1), [CELL], ArchiveParams())

    assert (smaller.figures([]).coverage, smaller.rates()) == (0.0, [])
    assert smaller.novelty(attack()) == 0.0
    assert smaller.state(1).cells[OTHER.key] == known(made, OTHER)


def test_a_state_that_was_given_does_not_change():
    """It is that of its round, whatever is entered later."""
    made = archive()
    made.enter([entry("river song")], 1)
    before = made.state(1)
    copy = before.model_dump_json()

    made.enter([entry("old council")], 2)

    assert before.model_dump_json() == copy
    assert (before.lineage, before.round) == ("tiny", 1)


# Figures.


def test_figures_tell_what_was_tried_and_what_won():
    """Coverage of attempts and of wins, and the sum of the best elites' quality."""
    made = archive(CELL, OTHER, CHINESE, GRID[0], min_novelty=0.0)
    wins = [entry("river song", 0.5), entry("old council", 0.75), entry("青叶党", 1.0, CHINESE)]

    made.enter([*wins, entry("zzz", 0.0, OTHER)], 1)

    figures = made.figures([each.attack for each in wins])
    assert (figures.coverage, figures.coverage_won, figures.qd_score, figures.num_elites) == (0.75, 0.5, 1.75, 3)
    assert (figures.diversity[EN].num, figures.diversity[ZH].num) == (2, 1)
    assert figures.diversity[EN].self_similarity is not None and figures.diversity[ZH].self_similarity is None


@pytest.mark.parametrize(
    ("counts", "evenness"), [((0, 0), None), ((1, 0), None), ((2, 0), 0.0), ((3, 3), 1.0), ((1, 3), 0.8113)]
)
def test_evenness_is_pielous(counts, evenness):
    """Entropy of the attempts over its greatest value: 0 for one cell alone, 1 when all were tried alike."""
    made = archive(CELL, OTHER)

    made.enter(
        [entry(f"{n}", 0.0, cell) for cell, num in zip((CELL, OTHER), counts, strict=True) for n in range(num)], 1
    )

    assert made.figures([]).evenness == (None if evenness is None else pytest.approx(evenness, abs=1e-4))


def test_one_lucky_attack_does_not_make_a_cell_the_weakest():
    """Ten attacks that nearly always win say more than one that did."""
    cells = GRID[:4]
    made = archive(*cells)
    steady = [entry(f"{n}", 0.9, cells[1]) for n in range(10)]

    made.enter([entry("lucky", 1.0, cells[0]), *steady, entry("zzz", 0.0, cells[2])], 1)

    assert made.figures([]).weakest == [cells[1].key, cells[0].key, cells[2].key]
    assert made.figures([], weakest=1).weakest == [cells[1].key]
