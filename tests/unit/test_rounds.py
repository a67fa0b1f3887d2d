"""A round's own decisions, among role servers that answer by rule: its goals, their tries, what the Attacker learns."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from services.trainer import rounds
from services.trainer.rounds import Rounds
from vcllm.charter import load_charter
from vcllm.contracts.attacks import Attack, AttackReply, AttackRequest, attack_prompt
from vcllm.contracts.chat import ChatBatchReply, Completion
from vcllm.contracts.critiques import Critique, CritiqueReply, CritiqueRequest, Outcome
from vcllm.contracts.recipes import AttackerStage, Optim, PreferenceStage
from vcllm.contracts.recipes import Rounds as Params
from vcllm.starter.world import World

CHARTER = load_charter().with_first_cards(5)
OPTIM = Optim(learning_rate=1e-3)


class FakeRoles:
    """All three servers: queries differ by their seed, answers are given way to where the seed is even."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.sizes: dict[str, list[int]] = {"attack": [], "critique": []}

    def attacks(self, request: AttackRequest, *, trace: str) -> AttackReply:
        assert request.seed is not None
        seeds = [request.seed + place for place in range(len(request.goals))]
        self.seeds += seeds
        self.sizes["attack"].append(len(seeds))
        attacks = [
            Attack(goal=goal, query=f"{goal.text} {seed}") for goal, seed in zip(request.goals, seeds, strict=True)
        ]
        return AttackReply(attacks=attacks, attacker_version="a")

    def chat_batch(self, model: str, conversations: list[Any], sampling: Any, n: int, *, trace: str) -> ChatBatchReply:
        completions = [[Completion(text=turns[0].content, finish_reason="stop", num_tokens=1)] * n
                       for turns in conversations]  # fmt: skip
        return ChatBatchReply(model=model, completions=completions)

    def critiques(self, request: CritiqueRequest, *, trace: str) -> CritiqueReply:
        self.sizes["critique"].append(len(request.items))
        even = [int(item.query.rpartition(" ")[2]) % 2 == 0 for item in request.items]
        views = [Critique(outcome=Outcome.VIOLATING if won else Outcome.CONSISTENT, score=0.5) for won in even]
        return CritiqueReply(critiques=views, critic_version="c")


class FakeContext:
    """Keeps nothing and writes nothing."""

    charter, lineage, seed = CHARTER, "line", 0

    def __init__(self, **params: Any) -> None:
        stages = {
            "preference": PreferenceStage(optim=OPTIM),
            "attacker": AttackerStage(optim=OPTIM, num_rows=0),
        }
        self.recipe = SimpleNamespace(rounds=Params(**stages, **{"num_goals": 20, "num_samples": 2, **params}))
        self.attacker = self.actor = self.critic = self.roles = FakeRoles()
        self.hold = SimpleNamespace(go_on=lambda: None)
        self.store = SimpleNamespace(manifest=lambda role, name: SimpleNamespace(files={}))
        self.pairs = SimpleNamespace(add=lambda pair: True)

    def world(self, purpose: str) -> World:
        return World(CHARTER, purpose)

    def recall(self, name: str) -> None:
        return None

    def keep(self, name: str, value: Any) -> None:
        pass

    def tell(self, type_: str, **data: Any) -> None:
        pass


def play(context: FakeContext, number: int = 1) -> Any:
    made = Rounds(context)  # type: ignore[arg-type]
    return made, made.play(number, "actor", "attacker", "critic")


def test_every_try_at_a_goal_has_a_seed_of_its_own():
    """So that a goal sees different queries; without more tries nothing is different from before."""
    context, single = FakeContext(num_tries=3), FakeContext()
    _, played = play(context)
    _, once = play(single)

    prompts = Counter(attack_prompt(attack.goal) for attack in played.attacks)
    assert played.num_asked == 60 and len(set(context.roles.seeds)) == 60
    assert prompts == {prompt: 3 * count for prompt, count in
                       Counter(attack_prompt(attack.goal) for attack in once.attacks).items()}  # fmt: skip


def test_the_attacker_learns_wins_over_failures_where_goals_are_tried_twice():
    """Queries of even seeds win here, so each goal has one of each; harmless goals teach it nothing."""
    made, played = play(FakeContext(num_tries=2))

    rows = made.attacker_rows(played)
    prompts = {attack_prompt(attack.goal) for attack in played.attacks if attack.goal.kind == "attack"}

    assert len([row for row in rows if "rejected" in row]) == len(prompts)
    assert all(int(row["chosen"].split()[-1]) % 2 == 0 for row in rows if "rejected" in row)
    assert all(int(row["rejected"].split()[-1]) % 2 == 1 for row in rows if "rejected" in row)


def test_a_failure_of_an_earlier_round_is_remembered(monkeypatch: pytest.MonkeyPatch):
    """The goals of the second round are those of the first, and each fails in one of them."""
    made = Rounds(FakeContext())  # type: ignore[arg-type]
    goals = made._goals(1)
    monkeypatch.setattr(made, "_goals", lambda number: goals)
    monkeypatch.setattr(made, "_seed", lambda number, purpose: number)
    first, second = (made.play(number, "actor", "attacker", "critic") for number in (1, 2))

    rejected = [row["rejected"] for row in made.attacker_rows(second) if "rejected" in row]

    assert rejected
    assert set(rejected) <= {attack.query for attack in first.attacks}


def test_a_round_larger_than_one_request_is_asked_in_several(monkeypatch: pytest.MonkeyPatch):
    """The contracts limit a request, not a round; seeds go on where the request before ended."""
    context, whole = FakeContext(), FakeContext()
    play(whole)
    monkeypatch.setattr(rounds, "MAX_GOALS", 8)
    monkeypatch.setattr(rounds, "MAX_ITEMS", 16)
    play(context)

    assert context.roles.sizes == {"attack": [8, 8, 4], "critique": [16, 16, 8]}
    assert context.roles.seeds == whole.roles.seeds
