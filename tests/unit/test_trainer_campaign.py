"""What a campaign decides between its rounds: who stands, when it ends, what is made known again after a kill."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from services.trainer.campaign import TOLD, Campaign
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.recipes import AttackerStage, Optim, PreferenceStage
from vcllm.contracts.recipes import Rounds as Params

OPTIM = Optim(learning_rate=1e-3)
PASSED = GateVerdict(passed=True, checks=[], decision="promote")
HELD = GateVerdict(passed=False, checks=[], decision="hold")


class FakeGates:
    """Verdicts that were entered, and those that a person has promoted since."""

    def __init__(self) -> None:
        self.entered: dict[str, GateVerdict] = {}
        self.promoted_by_people: set[str] = set()

    def of(self, version: str) -> Any:
        verdict = self.entered.get(version)
        if verdict is None:
            return None
        return SimpleNamespace(is_promoted=verdict.passed or version in self.promoted_by_people)

    def enter(self, candidate: str, parent: str, verdict: GateVerdict) -> None:
        self.entered[candidate] = verdict


class FakeContext:
    """One lineage's surroundings, all in memory."""

    lineage = "line"

    def __init__(self, **params: Any) -> None:
        stages = {"preference": PreferenceStage(optim=OPTIM), "attacker": AttackerStage(optim=OPTIM)}
        self.recipe = SimpleNamespace(rounds=Params(**stages, **params))
        self.files: dict[str, str] = {}
        self.gates = FakeGates()
        self.attackers = {"line-attacker"}
        self.store = SimpleNamespace(has=lambda role, version: version in self.attackers)
        self.stop = False
        self.rows: list[Any] = []
        self.campaigns = SimpleNamespace(
            stop_asked=lambda lineage: self.stop,
            put_round=lambda lineage, row: self.rows.append(row),
            put_archive=lambda state: None,
        )
        self.moves: list[str] = []
        self.entered: list[tuple[str, str]] = []
        self.aliases = SimpleNamespace(set=lambda role, alias, version: None)
        self.hold = SimpleNamespace(confirm=lambda: None)

    def version(self, stage: str) -> str:
        return f"line-{stage}"

    def promote(self, role: str, version: str) -> None:
        self.moves.append(version)

    def enter(self, action: str, target: str) -> None:
        self.entered.append((action, target))

    def recall(self, name: str) -> Any:
        return json.loads(self.files[name]) if name in self.files else None

    def keep(self, name: str, value: Any) -> None:
        self.files[name] = json.dumps(value)


class FakeResults:
    """Rounds that are done: number to the version measured, its verdict, and why no further round follows."""

    def __init__(self, rounds: dict[int, tuple[str, GateVerdict | None, str]]) -> None:
        self.rounds = rounds

    def round(self, number: int) -> Any:
        if number not in self.rounds:
            return None
        version, gate, stop = self.rounds[number]
        return SimpleNamespace(
            version=version, gate=gate, round=SimpleNamespace(work=SimpleNamespace(stop=stop)), retention=None
        )

    def gate(self, number: int) -> GateVerdict | None:
        return self.rounds[number][1] if number in self.rounds else None

    def trained(self, number: int) -> str | None:
        return f"line-r{number}" if number in self.rounds and self.rounds[number][0] == f"line-r{number}" else None


def campaign_of(context: FakeContext, rounds: dict[int, tuple[str, GateVerdict | None, str]]) -> Any:
    made: Any = object.__new__(Campaign)
    made.context, made.results, made.params = context, FakeResults(rounds), context.recipe.rounds
    return made


def test_a_round_starts_from_the_newest_version_that_was_promoted():
    """The one before was held: the round starts from the one before that."""
    context = FakeContext()
    context.gates.entered = {"line-r1": PASSED, "line-r2": HELD}

    assert campaign_of(context, {1: ("line-r1", PASSED, ""), 2: ("line-r2", HELD, "")})._head(3) == "line-r1"


def test_a_held_version_that_a_person_promoted_counts():
    """The gate's word and the person's are kept side by side; the person's stands."""
    context = FakeContext()
    context.gates.entered = {"line-r1": PASSED, "line-r2": HELD}
    context.gates.promoted_by_people = {"line-r2"}

    assert campaign_of(context, {1: ("line-r1", PASSED, ""), 2: ("line-r2", HELD, "")})._head(3) == "line-r2"


def test_a_round_that_trained_no_candidate_leaves_the_version_before():
    """Only the Attacker learned of the second round."""
    context = FakeContext()
    context.gates.entered = {"line-r1": PASSED}

    assert campaign_of(context, {1: ("line-r1", PASSED, ""), 2: ("line-r1", None, "")})._head(3) == "line-r1"


def test_the_newest_attacker_there_is_writes_the_round():
    """No Attacker learned of the second round, so that of the first writes the third; a hosted one goes before all."""
    context = FakeContext()
    context.attackers |= {"line-attacker-r1"}
    hosted = FakeContext(hosted_attacker="big-model", attacker_learns=False, prompted=True)

    assert campaign_of(context, {})._attacker(3) == "line-attacker-r1"
    assert campaign_of(hosted, {})._attacker(1) == "big-model"


def test_no_round_follows_the_stop_rule():
    """Its sentence stands with the last round that was played, however many are left out."""
    made = campaign_of(FakeContext(), {1: ("line-r1", PASSED, ""), 2: ("line-r2", PASSED, "Nothing new wins.")})

    assert made._ended(3) == made._ended(4) == "Nothing new wins."


def test_a_campaign_told_to_stop_finishes_the_round_in_progress():
    """A round that has begun is played to its end, the next is not."""
    context = FakeContext()
    context.stop = True
    context.keep("rounds/round-2/versions.json", {})
    made = campaign_of(context, {1: ("line-r1", PASSED, "")})

    assert made._ended(2) == ""
    assert made._ended(3) == TOLD


def test_what_a_kill_left_undone_is_done_once():
    """The alias moves when the gate's word was not entered yet, and not again once it was: a rollback stays."""
    context = FakeContext()
    made = campaign_of(context, {})
    made._promote("line-r1", "line-sft", PASSED)
    made._promote("line-r1", "line-sft", PASSED)

    assert context.moves == ["line-r1"]


def test_a_version_that_is_held_is_not_served():
    """It is entered for a person to decide, and the alias stays where it is."""
    context = FakeContext()
    campaign_of(context, {})._promote("line-r1", "line-sft", HELD)

    assert context.moves == []
    assert context.gates.entered == {"line-r1": HELD}
    assert context.entered == [("gate hold", "line-r1")]


def test_a_gate_that_is_switched_off_lets_everything_through():
    """Its verdict is kept all the same, and the next round starts from the candidate."""
    context = FakeContext(gate={"enabled": False})
    made = campaign_of(context, {1: ("line-r1", HELD, "")})
    made._promote("line-r1", "line-sft", HELD)

    assert context.moves == ["line-r1"]
    assert made._head(2) == "line-r1"
    assert made._before(2)[1].passed is None
