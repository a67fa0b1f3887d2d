"""A round among role servers that answer by rule: goals, tries, turns, pairs, what the Attacker learns of it."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from services.trainer import asking
from services.trainer.asking import Versions
from services.trainer.played import Played
from services.trainer.rounds import Rounds
from vcllm.alignment.verdicts import Limits
from vcllm.charter import load_charter
from vcllm.contracts.attacks import Attack, AttackReply, AttackRequest, attack_prompt
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatBatchReply, Completion
from vcllm.contracts.critiques import (
    Comparison,
    ComparisonReply,
    ComparisonRequest,
    Critique,
    CritiqueReply,
    CritiqueRequest,
    Outcome,
)
from vcllm.contracts.recipes import AttackerStage, Optim, PreferenceStage
from vcllm.contracts.recipes import Rounds as Params
from vcllm.data.contamination import Contamination
from vcllm.starter.world import World

CHARTER = load_charter().with_first_cards(5)
OPTIM = Optim(learning_rate=1e-3)
LIMITS = dict.fromkeys(Language, Limits(0.6, 0.5))
VERSIONS = Versions("attacker", "actor", "critic")


class FakeRoles:
    """All three servers: queries differ by their seed, answers are given way to where the seed is even."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.sizes: dict[str, list[int]] = {"attack": [], "critique": []}
        self.asked: list[list[str]] = []
        """Conversations put to the Actor."""
        self.critic = by_seed

    def attacks(self, request: AttackRequest, *, trace: str) -> AttackReply:
        assert request.seed is not None
        seeds = [request.seed + place for place in range(len(request.goals))]
        self.seeds += seeds
        self.sizes["attack"].append(len(seeds))
        histories = request.histories or [[] for _ in request.goals]
        attacks = [
            Attack(goal=goal, query=f"{goal.text} {goal.claim} {seed}", history=history)
            for goal, seed, history in zip(request.goals, seeds, histories, strict=True)
        ]
        return AttackReply(attacks=attacks, attacker_version="a")

    def chat_batch(self, model: str, conversations: list[Any], sampling: Any, n: int, *, trace: str) -> ChatBatchReply:
        self.asked += [[turn.content for turn in turns] for turns in conversations]
        completions = [
            [Completion(text=f"{model} {place}", finish_reason="stop", num_tokens=1) for place in range(n)]
            for _ in conversations
        ]
        return ChatBatchReply(model=model, completions=completions)

    def critiques(self, request: CritiqueRequest, *, trace: str) -> CritiqueReply:
        self.sizes["critique"].append(len(request.items))
        return CritiqueReply(critiques=[self.critic(item) for item in request.items], critic_version="c")

    def comparisons(self, request: ComparisonRequest, *, trace: str) -> ComparisonReply:
        comparisons = [Comparison(preferred="first", margin=0.5) for _ in request.items]
        return ComparisonReply(comparisons=comparisons, critic_version="c")


def by_seed(item: Any) -> Critique:
    even = int(item.query.rpartition(" ")[2]) % 2 == 0
    return Critique(outcome=Outcome.VIOLATING, score=0.1) if even else Critique(outcome=Outcome.CONSISTENT, score=0.9)


def first_answer_is_good(item: Any) -> Critique:
    good = item.response.endswith(" 0")
    return Critique(outcome=Outcome.CONSISTENT, score=0.9) if good else Critique(outcome=Outcome.VIOLATING, score=0.1)


class FakeContext:
    """Keeps what it is given, as JSON, for as long as it lives."""

    charter, lineage, seed = CHARTER, "line", 0

    def __init__(self, files: dict[str, str] | None = None, **params: Any) -> None:
        stages = {
            "preference": PreferenceStage(optim=OPTIM),
            "attacker": AttackerStage(optim=OPTIM, num_rows=0),
        }
        self.recipe = SimpleNamespace(rounds=Params(**stages, **{"num_goals": 20, "num_samples": 2, **params}))
        self.attacker = self.actor = self.critic = self.roles = FakeRoles()
        self.hold = SimpleNamespace(go_on=lambda: None)
        self.store = SimpleNamespace(manifest=lambda role, name: SimpleNamespace(files={}), manifests=lambda role: [])
        self.queued: list[Any] = []
        self.pairs = SimpleNamespace(add=self.queued.append)
        self.reviewed: list[Any] = []
        self.reviews = SimpleNamespace(add=self.reviewed.append)
        self.files = {} if files is None else files

    def world(self, purpose: str) -> World:
        return World(CHARTER, purpose)

    def embed(self, texts: list[str], trace: str) -> list[list[float]]:
        return [[] for _ in texts]

    def recall(self, name: str) -> Any:
        return json.loads(self.files[name]) if name in self.files else None

    def keep(self, name: str, value: Any) -> None:
        self.files[name] = json.dumps(value)

    def tell(self, type_: str, **data: Any) -> None:
        pass


class FakeData:
    """Nothing is evaluated and nothing imported."""

    kept_from_rounds = Contamination([])

    def imported_pairs(self, number: int) -> list[Any]:
        return []


def rounds_of(context: FakeContext) -> Rounds:
    return Rounds(context, FakeData(), lambda critic, number: LIMITS)  # type: ignore[arg-type]


def play(context: FakeContext, number: int = 1) -> tuple[Rounds, Played]:
    made = rounds_of(context)
    return made, made.play(number, VERSIONS, {})


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
    made = rounds_of(FakeContext())
    goals = made._goals("rounds/round-1", 1, made.steering(1, {}), 20)
    monkeypatch.setattr(made, "_goals", lambda *_: goals)
    monkeypatch.setattr(made, "_seed", lambda folder, purpose: int(folder[-1]))
    first, second = (made.play(number, VERSIONS, {}) for number in (1, 2))

    rejected = [row["rejected"] for row in made.attacker_rows(second) if "rejected" in row]

    assert rejected
    assert set(rejected) <= {attack.query for attack in first.attacks}


def test_a_round_larger_than_one_request_is_asked_in_several(monkeypatch: pytest.MonkeyPatch):
    """The contracts limit a request, not a round; seeds go on where the request before ended."""
    context, whole = FakeContext(), FakeContext()
    play(whole)
    monkeypatch.setattr(asking, "MAX_GOALS", 8)
    monkeypatch.setattr(asking, "MAX_ITEMS", 16)
    play(context)

    assert context.roles.sizes == {"attack": [8, 8, 4], "critique": [16, 16, 8]}
    assert context.roles.seeds == whole.roles.seeds


def test_a_round_that_is_recalled_is_the_round_that_was_played():
    """From its files alone, without asking anybody: the same pairs, archive, novelty and steering of the next."""
    context = FakeContext(benign_share=0.4, num_goals=40)
    context.roles.critic = first_answer_is_good
    made, played = play(context)
    again = FakeContext(context.files, benign_share=0.4, num_goals=40)
    recalled_by, recalled = play(again)

    assert again.roles.sizes == {"attack": [], "critique": []}
    assert [pair.id for pair in recalled.pairs] == [pair.id for pair in played.pairs] != []
    assert recalled.novelty == played.novelty
    assert recalled_by.archive.state(1) == made.archive.state(1)
    assert recalled_by.steering(2, {}) == made.steering(2, {})


def test_an_attack_over_several_turns_hears_the_actor_on_the_way():
    """Its history goes question, answer, question, answer; the last question carries the claim and is judged."""
    context = FakeContext(multi_turn_share=1.0, benign_share=0.0)
    _, played = play(context)

    for attack in played.attacks:
        roles = [message.role for message in attack.history]
        assert roles == ["user", "assistant"] * (attack.goal.num_turns - 1)
        assert {message.content for message in attack.history if message.role == "assistant"} == {"actor 0"}
        assert attack.goal.text in attack.query
    assert {len(turns) for turns in context.roles.asked} == {1, 3, 5, 7, 9}


def test_a_goal_whose_query_fell_to_a_filter_is_set_again():
    """So often as the recipe says, with another seed; what passed stays, and every query is counted."""
    context, wasteful = FakeContext(num_retries=2), FakeContext(num_retries=0)
    for each in (context, wasteful):
        spoil_first_requests(each.roles, 1)
    _, played = play(context)
    _, lost = play(wasteful)

    assert context.roles.sizes["attack"] == [20, 10], "only the spoilt half is asked again"
    assert (played.num_asked, len(played.attacks), played.dropped.total()) == (30, 20, 10)
    assert (lost.num_asked, len(lost.attacks), lost.dropped.total()) == (20, 10, 10)
    assert len(set(context.roles.seeds)) == 30

    hopeless = FakeContext(num_retries=2)
    spoil_first_requests(hopeless.roles, 99)
    _, played = play(hopeless)
    assert hopeless.roles.sizes["attack"] == [20, 10, 5] and played.dropped.total() == 10 + 5 + 2


def spoil_first_requests(roles: FakeRoles, num: int) -> None:
    """In so many requests every second query loses its goal."""
    write = roles.attacks

    def spoilt(request: AttackRequest, *, trace: str) -> AttackReply:
        reply = write(request, trace=trace)
        if len(roles.sizes["attack"]) > num:
            return reply
        attacks = [
            attack.model_copy(update={"query": "lost"}) if place % 2 else attack
            for place, attack in enumerate(reply.attacks)
        ]
        return reply.model_copy(update={"attacks": attacks})

    roles.__dict__["attacks"] = spoilt


def test_a_part_prepared_ahead_counts_within_the_round():
    """It is played by the versions that were there; the rest of the round by the newer ones, and both make pairs."""
    context = FakeContext(overlap_share=0.5)
    context.roles.critic = first_answer_is_good
    made, _ = play(context)
    made.prepare(2, VERSIONS, {})
    newer = Versions("attacker-r1", "actor-r1", "critic")
    played = made.play(2, newer, {})

    assert played.num_asked == 20 and played.num_ahead == 10
    assert Counter(turnout.versions.actor for turnout in played.turnouts) == {"actor": 10, "actor-r1": 10}
    assert {pair.provenance.actor for pair in played.pairs} == {"actor", "actor-r1"}


def test_what_was_prepared_is_held_to_the_limits_it_was_prepared_by():
    """The limits of a round may move with its Critic's labels; comparisons that were not asked for cannot be missed."""
    context = FakeContext(overlap_share=0.5, benign_share=0.0)
    context.roles.critic = first_answer_is_good
    strict = dict.fromkeys(Language, Limits(0.95, 0.05))
    made = Rounds(context, FakeData(), lambda critic, number: LIMITS if number < 2 else strict)  # type: ignore[arg-type]
    made.play(1, VERSIONS, {})
    made.prepare(2, VERSIONS, {})
    played = made.play(2, VERSIONS, {})

    assert len(played.pairs) == played.num_ahead == 10


def test_pairs_of_a_version_too_old_are_dropped_and_counted():
    """With no staleness allowed, what was prepared against the version before does not train the next."""
    context = FakeContext(overlap_share=0.5, max_staleness=0)
    context.roles.critic = first_answer_is_good
    made, _ = play(context)
    made.prepare(2, VERSIONS, {})
    played = made.play(2, Versions("attacker", "actor-r1", "critic"), {})

    assert {pair.provenance.actor for pair in played.pairs} == {"actor-r1"}
    assert played.made.counts.dropped["stale"] > 0


def test_an_answer_that_contradicts_the_other_language_makes_a_pair_of_its_own():
    """Every goal is asked in both languages; in both a good answer stands beside a violating one."""
    context = FakeContext(twin_share=1.0, benign_share=0.0)
    context.roles.critic = first_answer_is_good
    _, played = play(context)

    assert Counter(attack.goal.cell.language for attack in played.attacks) == {"zh": 10, "en": 10}
    assert played.made.counts.sources["contradiction"] > 0
    assert all(pair.rejected is not None for pair in played.pairs if pair.source == "contradiction")


def test_what_the_critic_is_not_sure_of_goes_to_people():
    """Inside the band around the limit no pair is made; the answer is put before people instead."""
    context = FakeContext(critic={"abstain": 0.2}, benign_share=0.0)
    context.roles.critic = lambda item: Critique(outcome=Outcome.CONSISTENT, score=0.7)
    _, played = play(context)

    assert played.pairs == []
    assert len(context.reviewed) == played.made.counts.reviews == played.made.counts.dropped["doubtful"] > 0


def test_only_pairs_that_a_version_learned_are_shown_again():
    """The Actor sat the first round out, so its pairs are still new; those of the second come back in the third."""
    context = FakeContext(benign_share=0.0, replay_share=0.5)
    context.roles.critic = first_answer_is_good
    made = rounds_of(context)
    played = [made.play(number, VERSIONS, {}) for number in (1, 2, 3)]
    learned = [pair.id for pair in played[1].pairs]
    context.store.manifests = lambda role: [SimpleNamespace(lineage="line", round=2, pairs=learned, replayed=[])]

    assert set(made.replay(3, 10)) <= set(learned)
    assert len(made.replay(3, 10)) == 10
    assert made.replay(2, 10) == []


def test_a_newer_critic_takes_back_what_it_would_not_approve():
    """The pairs of the first round are judged again once the Critic was fitted anew, and once only."""
    context = FakeContext(benign_share=0.0, replay_share=0.5)
    context.roles.critic = first_answer_is_good
    made = rounds_of(context)
    first = made.play(1, VERSIONS, {})
    made.play(2, Versions("attacker", "actor", "critic-r2"), {})
    learned = [pair.id for pair in first.pairs]
    context.store.manifests = lambda role: [SimpleNamespace(lineage="line", round=1, pairs=learned, replayed=[])]
    spared = {pair.query for pair in first.pairs[::2]}
    context.roles.critic = lambda item: (
        first_answer_is_good(item) if item.query in spared else Critique(outcome=Outcome.VIOLATING, score=0.1)
    )

    shown = made.replay(2, 100)
    context.roles.sizes["critique"].clear()

    assert set(shown) == {pair.id for pair in first.pairs if pair.query in spared}
    assert made.replay(2, 100) == shown and context.roles.sizes["critique"] == []


def test_queries_kept_for_good_are_plain_and_half_of_them_won():
    """No conversations and no swapped groups; of 20 queries, those that won come first until they are half."""
    made, played = play(FakeContext(multi_turn_share=0.5, num_retention=6, num_goals=60))

    kept = {item.query for item in made.retained(1)}
    attacks = {attack.query: attack for attack in played.attacks}

    assert len(kept) == 6
    assert all(not attacks[query].history for query in kept)
    assert sum(int(query.split()[-1]) % 2 == 0 for query in kept) >= 3
