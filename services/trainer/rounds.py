"""One adversarial round up to its approved pairs: Attacker, filters, Actor, Critic, stream.

Every step's outcome is written before the next begins, so an interrupted round carries on where it was. What the
steps decide stands in `vcllm.alignment`; this module only connects them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from services.trainer.context import Context
from vcllm.alignment.archive import Archive
from vcllm.alignment.controller import next_benign_share
from vcllm.alignment.filters import Sieve
from vcllm.alignment.pairing import make_pair, success_share
from vcllm.alignment.replay import choose_replay
from vcllm.alignment.updates import Attempt, attacker_updates
from vcllm.contracts.attacks import MAX_GOALS, Attack, AttackGoal, AttackRequest, Cell, ItemKind, attack_prompt
from vcllm.contracts.base import Language, digest
from vcllm.contracts.charter import Split, TacticUse
from vcllm.contracts.chat import ChatMessage, Completion, Sampling
from vcllm.contracts.critiques import MAX_ITEMS, Critique, CritiqueItem, CritiqueRequest, Outcome
from vcllm.contracts.evaluation import ArchiveCell, EvalItem, RoundSummary
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.evaluation.measures import share_of
from vcllm.starter.gold import judge

T = TypeVar("T")
NOVEL = 0.3
"""A query counts as novel when it is at least this far from every remembered win of its cell."""


@dataclass(frozen=True)
class Played:
    """What a round has produced."""

    number: int
    attacks: list[Attack]
    """Those that passed the filters."""
    dropped: Counter[str]
    num_asked: int
    answers: list[list[Completion]]
    critiques: list[list[Critique]]
    pairs: list[Pair]
    novelty: list[float]

    @property
    def successes(self) -> list[float]:
        return [success_share(critiques) or 0.0 for critiques in self.critiques]

    @property
    def attempts(self) -> list[Attempt]:
        """The attacks, harmless ones left out, as the Attacker learns from them."""
        return [
            Attempt(attack_prompt(attack.goal), attack.query, success_share(critiques), novelty)
            for attack, critiques, novelty in zip(self.attacks, self.critiques, self.novelty, strict=True)
            if attack.goal.kind == "attack"
        ]


class Rounds:
    """The rounds of one lineage, in order."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.params = context.recipe.rounds
        charter = context.charter
        self.cards = charter.cards_of(Split.TRAIN)
        self.tactics = charter.tactics_of(TacticUse.SEED, TacticUse.LOOP)
        subdomains = sorted({card.subdomain for card in self.cards})
        self.cells = [
            Cell(subdomain=subdomain, tactic=tactic.id, language=language)
            for subdomain in subdomains
            for tactic in self.tactics
            for language in Language
        ]
        self.sieve = Sieve(charter.tactics_of(TacticUse.DEV, TacticUse.TEST))
        self.archive = Archive(self.cells)
        self.benign_share = self.params.benign_share
        self.played: dict[int, Played] = {}

    def play(self, number: int, actor: str, attacker: str, critic: str) -> Played:
        """Play a round against a version of the Actor; earlier rounds must have been played or recalled first."""
        context, folder = self.context, f"rounds/round-{number}"
        trace = digest([context.lineage, number])[:32]
        goals = self._goals(number)
        attacks = self._attacks(f"{folder}/attacks.json", goals, attacker, number, trace)
        sifted = self.sieve.sift(attacks)
        answers = self._answers(f"{folder}/answers.json", sifted.kept, actor, number, trace)
        critiques = self._critiques(f"{folder}/critiques.json", sifted.kept, answers, critic, number, trace)
        provenance = Provenance(
            attacker=attacker,
            actor=actor,
            critic=critic,
            charter=context.charter.hash,
            template=self._template_hash(actor),
            lineage=context.lineage,
            round=number,
            trace=trace,
        )
        pairs = self._pairs(sifted.kept, answers, critiques, provenance)
        for pair in pairs:
            context.hold.go_on()
            context.pairs.add(pair)
        context.tell("round", round=number, phase="pair", done=len(pairs), total=len(sifted.kept))
        novelty = [self.archive.novelty(attack) for attack in sifted.kept]
        played = Played(number, sifted.kept, sifted.dropped, len(goals), answers, critiques, pairs, novelty)
        self._remember(played)
        return played

    def replay(self, number: int, num_new: int) -> list[str]:
        """Ids of pairs of earlier rounds to show again in this one."""
        earlier = [pair for played in self.played.values() if played.number < number for pair in played.pairs]
        chance = self._chance(number, "replay")
        return [pair.id for pair in choose_replay(earlier, num_new, self.params.replay_share, chance)]

    def attacker_rows(self, played: Played) -> list[dict[str, Any]]:
        """What the round's attacks teach, among seeds that keep the Attacker's form."""
        before = [self.played[number] for number in sorted(self.played) if number < played.number]
        updates = attacker_updates(played.attempts, [attempt for one in before for attempt in one.attempts])
        return updates + self.context.world(f"attacker-{played.number}").attacker_rows(self.params.attacker.num_rows)

    def retention(self, before: int) -> list[EvalItem]:
        """Queries of rounds before this one that are kept for good, `num_retention` of each."""
        items: list[EvalItem] = []
        for number in sorted(n for n in self.played if n < before):
            attacks = self.played[number].attacks
            chosen = self._chance(number, "retention").sample(attacks, min(self.params.num_retention, len(attacks)))
            items.extend(_retained(attack, number) for attack in chosen)
        return list({item.id: item for item in items}.values())

    def summary(self, played: Played, num_replayed: int) -> RoundSummary:
        """The round in figures; whether an attack won is the report's judge's word, not the Critic's."""
        rulings = [
            [self._ruled(attack.goal, answer) for answer in answers]
            for attack, answers in zip(played.attacks, played.answers, strict=True)
        ]
        won = [
            Outcome.VIOLATING in row
            for attack, row in zip(played.attacks, rulings, strict=True)
            if attack.goal.kind == "attack"
        ]
        judged = [
            critique.outcome is ruling
            for critiques, row in zip(played.critiques, rulings, strict=True)
            for critique, ruling in zip(critiques, row, strict=True)
            if critique.outcome is not Outcome.UNSCORED
        ]
        return RoundSummary(
            number=played.number,
            num_attacks=played.num_asked,
            num_valid=len(played.attacks),
            num_refused=played.dropped["refused"],
            num_leaked=played.dropped["leaked"],
            num_novel=sum(novelty >= NOVEL for novelty in played.novelty),
            num_benign=sum(attack.goal.kind == "benign" for attack in played.attacks),
            num_pairs=len(played.pairs),
            num_replayed=num_replayed,
            num_unscored=sum(c.outcome is Outcome.UNSCORED for row in played.critiques for c in row),
            attacker_success=share_of(won),
            critic_agreement=share_of(judged),
            coverage=self.archive.coverage(),
            archive={
                key: ArchiveCell(tried=record.tried, won=record.won) for key, record in self.archive.records.items()
            },
        )

    def _ruled(self, goal: AttackGoal, answer: Completion) -> Outcome:
        charter = self.context.charter
        card, done = charter.card(goal.card), answer.finish_reason == "stop"
        return judge(answer.text, card, charter.reason(card), goal.goal, goal.kind, goal.cell.language, done).outcome

    def _goals(self, number: int) -> list[AttackGoal]:
        """Cells by the archive's weights, a card and claim of each at random, a share of them harmless.

        Each stands there once for every try; a try's place gives it a seed of its own.
        """
        chance, world = self._chance(number, "goals"), self.context.world(f"round-{number}")
        goals = []
        for cell in self.archive.choose(self.cells, self.params.num_goals, chance):
            card = chance.choice([card for card in self.cards if card.subdomain == cell.subdomain])
            kind: ItemKind = "benign" if chance.random() < self.benign_share else "attack"
            goal = world.goal(card, self.context.charter.tactic(cell.tactic), cell.language, kind)
            goals.extend([goal] * self.params.num_tries)
        return goals

    def _attacks(self, name: str, goals: list[AttackGoal], attacker: str, number: int, trace: str) -> list[Attack]:
        context = self.context
        if (kept := context.recall(name)) is None:
            context.hold.go_on()
            attacks: list[Attack] = []
            for part in _parts(goals, MAX_GOALS):
                seed = self._seed(number, "attack") + len(attacks)
                request = AttackRequest(goals=part, seed=seed, model=attacker)
                attacks += context.attacker.attacks(request, trace=trace).attacks
            kept = [attack.model_dump(mode="json") for attack in attacks]
            context.keep(name, kept)
        context.tell("round", round=number, phase="attack", done=len(kept), total=len(goals))
        return [Attack.model_validate(row) for row in kept]

    def _answers(self, name: str, attacks: list[Attack], actor: str, number: int, trace: str) -> list[list[Completion]]:
        context, params = self.context, self.params
        if (kept := context.recall(name)) is None:
            context.hold.go_on()
            sampling = Sampling(
                temperature=params.temperature,
                max_tokens=params.max_tokens,
                seed=self._seed(number, "answer"),
            )
            conversations = [[ChatMessage(role="user", content=attack.query)] for attack in attacks]
            completions: list[list[Completion]] = []
            if conversations:  # every query of a poorly trained Attacker may fall to the filters
                reply = context.actor.chat_batch(actor, conversations, sampling, params.num_samples, trace=trace)
                completions = reply.completions
            kept = [[one.model_dump(mode="json") for one in row] for row in completions]
            context.keep(name, kept)
        context.tell("round", round=number, phase="answer", done=len(kept), total=len(attacks))
        return [[Completion.model_validate(one) for one in row] for row in kept]

    def _critiques(
        self,
        name: str,
        attacks: list[Attack],
        answers: list[list[Completion]],
        critic: str,
        number: int,
        trace: str,
    ) -> list[list[Critique]]:
        context = self.context
        if (kept := context.recall(name)) is None:
            context.hold.go_on()
            items = [
                CritiqueItem(
                    query=attack.query,
                    response=answer.text,
                    language=attack.goal.cell.language,
                    kind=attack.goal.kind,
                )
                for attack, row in zip(attacks, answers, strict=True)
                for answer in row
            ]
            critiques = iter(self._ask_critic(items, critic, trace))
            kept = [[next(critiques).model_dump(mode="json") for _ in row] for row in answers]
            context.keep(name, kept)
        context.tell("round", round=number, phase="critique", done=len(kept), total=len(attacks))
        return [[Critique.model_validate(one) for one in row] for row in kept]

    def _ask_critic(self, items: list[CritiqueItem], critic: str, trace: str) -> list[Critique]:
        requests = [CritiqueRequest(items=part, model=critic) for part in _parts(items, MAX_ITEMS)]
        replies = [self.context.critic.critiques(request, trace=trace) for request in requests]
        return [critique for reply in replies for critique in reply.critiques]

    def _pairs(
        self,
        attacks: list[Attack],
        answers: list[list[Completion]],
        critiques: list[list[Critique]],
        provenance: Provenance,
    ) -> list[Pair]:
        made = (
            make_pair(
                attack,
                row,
                views,
                provenance,
                chosen_min=self.params.chosen_min,
                rejected_max=self.params.rejected_max,
            )
            for attack, row, views in zip(attacks, answers, critiques, strict=True)
        )
        return [pair for pair in made if pair is not None]

    def _remember(self, played: Played) -> None:
        """Carry the round over into the archive and the controller."""
        rows = list(zip(played.attacks, played.successes, strict=True))
        attacks = [(attack, success) for attack, success in rows if attack.goal.kind == "attack"]
        self.archive.enter(attacks)
        refusals = [
            critique.outcome is Outcome.REFUSAL
            for attack, critiques in zip(played.attacks, played.critiques, strict=True)
            for critique in critiques
            if attack.goal.kind == "benign"
        ]
        self.benign_share = next_benign_share(
            self.benign_share,
            self.params.benign_share,
            over_refusal=sum(refusals) / max(1, len(refusals)),
            attack_success=sum(success for _, success in attacks) / max(1, len(attacks)),
            limits=self.context.charter.charter.thresholds,
        )
        self.played[played.number] = played

    def _template_hash(self, actor: str) -> str:
        """The chat template in force, by the hash of the file that holds it."""
        files = self.context.store.manifest("actor", actor).files
        return files.get("chat_template.jinja") or files.get("tokenizer_config.json", "")

    def _chance(self, number: int, purpose: str) -> random.Random:
        return random.Random(f"{self.context.lineage}-{self.context.seed}-{number}-{purpose}")

    def _seed(self, number: int, purpose: str) -> int:
        return self._chance(number, purpose).randrange(2**31)


def _parts(values: list[T], most: int) -> Iterator[list[T]]:
    for begin in range(0, len(values), most):
        yield values[begin : begin + most]


def _retained(attack: Attack, number: int) -> EvalItem:
    goal = attack.goal
    name = digest([number, attack.query])[:16]
    return EvalItem(
        id=f"retention-{name}",
        pair_id=f"retention-{name}",
        language=goal.cell.language,
        kind=goal.kind,
        suite="retention",
        card=goal.card,
        goal=goal.goal,
        subdomain=goal.cell.subdomain,
        tactic=goal.cell.tactic,
        query=attack.query,
    )
