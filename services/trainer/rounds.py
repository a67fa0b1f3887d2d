"""The adversarial rounds of one lineage, each up to its approved pairs: goals, attacks, filters, answers, critiques,
pairs, archive.

What the steps decide stands in `vcllm.alignment`, what is asked of servers in `asking`; this module connects them. A
round is a function of what was kept of it: recalled or played, it leaves the same archive and the same steering.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.trainer.asking import Asking, Clock, Versions
from services.trainer.context import Context
from services.trainer.pairmaking import PairMaker
from services.trainer.played import Part, Played, Turnout
from services.trainer.rejudging import still_good
from services.trainer.stagedata import StageData
from vcllm.alignment.archive import Archive, Entry
from vcllm.alignment.controller import Seen, first, steer
from vcllm.alignment.filters import Sieve
from vcllm.alignment.goals import GoalMaker
from vcllm.alignment.replay import choose_replay, retention_sample
from vcllm.alignment.shares import NOTHING, Share
from vcllm.alignment.updates import attacker_updates
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language, digest
from vcllm.contracts.charter import Split, TacticUse
from vcllm.contracts.evaluation import EvalItem
from vcllm.contracts.rounds import Steering
from vcllm.contracts.traces import trace_of
from vcllm.web.tracing import span, traceparent

LimitsOf = Mapping[Language, Limits]
MAX_UPDATES_PER_CELL = 4
"""Wins of one cell that teach the Attacker in a round."""


@dataclass(frozen=True)
class Outcome:
    """What became of a round that is done."""

    passed: bool | None = None
    """What its gate said; None: it trained no candidate, or the gate has no say."""
    retained: Share = NOTHING
    """Kept attacks of the rounds before it that succeeded again."""


Before = Mapping[int, Outcome]
"""By round; of a round that is not done there is nothing."""


class Rounds:
    """The rounds of one lineage, in order."""

    def __init__(self, context: Context, data: StageData, limits: Callable[[str, int], LimitsOf]) -> None:
        """limits: of a Critic's scores, by its version and the round."""
        self.context, self.limits = context, limits
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
        self.maker = GoalMaker(self.cards, self.tactics, self.params, charter.charter.name)
        self.sieve = Sieve(charter.tactics_of(TacticUse.DEV, TacticUse.TEST))
        self.archive = Archive(self.cells, self.params.archive, context.lineage)
        self.pairmaker = PairMaker(context, data)
        self.played: dict[int, Played] = {}

    def play(self, number: int, versions: Versions, before: Before) -> Played:
        """Play a round, or recall it; earlier rounds must have been played or recalled first."""
        folder, steering = round_folder(number), self.steering(number, before)
        ahead = self._prepared(number)
        num_ahead = self._num_ahead if ahead is not None else 0
        goals = self._goals(folder, number, steering, max(1, self.params.num_goals - num_ahead))
        part = self._part(folder, number, versions, self.limits(versions.critic, number), goals)
        parts = [part] if ahead is None else [ahead, part]
        heads = [self.played[earlier].versions.actor for earlier in sorted(self.played)] + [versions.actor]
        made = self.pairmaker.make(parts, number, versions.actor, heads, self._chance(number, "pairs"))
        turnouts = [turnout for part in parts for turnout in part.turnouts]
        self.context.tell("round", round=number, phase="pair", done=len(made.pairs), total=len(turnouts))
        novelty = self.archive.enter(map(_entry, turnouts), number)
        figures = self.archive.figures([turnout.attack for turnout in turnouts if _is_attack(turnout)])
        self.played[number] = Played(
            number,
            versions,
            steering,
            parts,
            made,
            novelty,
            figures,
            self.archive.rates(),
            num_ahead,
            Clock(self.context, folder),
        )
        return self.played[number]

    def prepare(self, number: int, versions: Versions, before: Before) -> None:
        """Play a part of a coming round while the one before it trains, against the versions that are there now."""
        num, folder = self._num_ahead, _ahead(number)
        if not num or self.context.recall(f"{folder}/prepared.json") is not None:
            return
        goals = self._goals(folder, number, self.steering(number, before), num)
        self._part(folder, number, versions, self.limits(versions.critic, number - 1), goals)
        self.context.keep(f"{folder}/prepared.json", versions.as_json())

    def steering(self, number: int, before: Before) -> Steering:
        """What the controller decides for a round, from all rounds before it."""
        steering = first(self.params)
        for earlier in range(1, number):
            seen = self._seen(earlier, before.get(earlier, Outcome()))
            steering = steer(steering, seen, self.params, self.context.charter.charter.thresholds)
        return steering

    def replay(self, number: int, num_new: int) -> list[str]:
        """Ids of pairs of earlier rounds to show again in this one; what no version has learned yet is new, not old."""
        manifests = [one for one in self.context.store.manifests("actor") if one.lineage == self.context.lineage]
        before = [one for one in manifests if one.round < number]
        learned = {pair for one in before for pair in one.pairs}
        shown = Counter(pair for one in before for pair in one.replayed)
        pairs = [pair for played in self.played.values() if played.number < number for pair in played.pairs]
        critic = self.played[number].versions.critic
        known = [pair for pair in pairs if pair.id in learned]
        earlier = still_good(self.context, known, critic, self.limits(critic, number), number)
        chance = self._chance(number, "replay")
        chosen = choose_replay(earlier, num_new, self.params.replay_share, chance, shown=shown)
        return [pair.id for pair in chosen]

    def attacker_rows(self, played: Played) -> list[dict[str, Any]]:
        """What the round's attacks teach, among seeds that keep the Attacker's form."""
        before = [self.played[number] for number in sorted(self.played) if number < played.number]
        diverse = self.params.archive.diversity
        updates = attacker_updates(
            played.attempts,
            [attempt for one in before for attempt in one.attempts],
            diversity=diverse,
            max_per_cell=MAX_UPDATES_PER_CELL if diverse else None,
        )
        return updates + self.context.world(f"attacker-{played.number}").attacker_rows(self.params.attacker.num_rows)

    def retention(self, before: int) -> list[EvalItem]:
        """Queries of rounds before this one that are kept for good, `num_retention` of each."""
        items = [item for number in sorted(n for n in self.played if n < before) for item in self.retained(number)]
        return list({item.id: item for item in items}.values())

    def retained(self, number: int) -> list[EvalItem]:
        """A round's own share of them: single turns in the card's words, as all frozen items are."""
        turnouts = [one for one in self.played[number].turnouts if _is_plain(one.attack)]
        won = {turnout.attack.query for turnout in turnouts if _succeeded(turnout)}
        attacks = [turnout.attack for turnout in turnouts]
        chosen = retention_sample(attacks, self.params.num_retention, self._chance(number, "retention"), won)
        return [_retained(attack, number) for attack in chosen]

    def place(self, folder: str) -> str:
        """The `traceparent` under which a round, or the part of it that is prepared ahead, is played.

        Decided before its first question, because it is in every pair: another job that goes on with the round does so
        in the trace that began it.
        """
        file = f"{folder}/trace.json"
        if (kept := self.context.recall(file)) is None:
            kept = traceparent()
            self.context.keep(file, kept)
        return str(kept)

    # Parts of a round.

    @property
    def _num_ahead(self) -> int:
        """Goals of a round that are set while the one before it trains."""
        return round(self.params.num_goals * self.params.overlap_share)

    def _part(
        self, folder: str, number: int, versions: Versions, limits: LimitsOf, goals: Sequence[AttackGoal]
    ) -> Part:
        place = self.place(folder)
        with span("play", {"vc.lineage": self.context.lineage, "vc.round": number}, above=place):
            return self._asked(folder, number, versions, limits, goals, trace_of(place))

    def _asked(
        self, folder: str, number: int, versions: Versions, limits: LimitsOf, goals: Sequence[AttackGoal], trace: str
    ) -> Part:
        asking = Asking(self.context, folder, number, versions, trace, lambda purpose: self._seed(folder, purpose))
        attacks = asking.attacks(goals, lambda attack: self.sieve.fault(attack) is None)
        sifted = self.sieve.sift(attacks)
        answers = asking.answers(sifted.kept)
        critiques = asking.critiques(sifted.kept, answers)
        by_critic = asking.votes(sifted.kept, answers)
        votes = [[rows[i] for rows in by_critic] for i in range(len(sifted.kept))]
        embeddings = asking.embeddings(sifted.kept)
        turnouts = [
            Turnout(attack, versions, trace, said, views, further, place)
            for attack, said, views, further, place in zip(
                sifted.kept, answers, critiques, votes, embeddings, strict=True
            )
        ]
        wanted = self.pairmaker.wanted([self.pairmaker.asked(turnout, number) for turnout in turnouts], limits)
        compared = asking.comparisons(sifted.kept, answers, wanted)
        turnouts = [replace(one, comparisons=row) for one, row in zip(turnouts, compared, strict=True)]
        return Part(len(attacks), Counter(sifted.dropped), turnouts, limits, Counter(asking.clock.seconds))

    def _prepared(self, number: int) -> Part | None:
        """What was prepared of a round, recalled; None where it was not. Held to the limits of the round it ran beside:
        those are what its comparisons were chosen by."""
        folder = _ahead(number)
        if (kept := self.context.recall(f"{folder}/prepared.json")) is None:
            return None
        versions = Versions.of_json(kept)
        return self._part(folder, number, versions, self.limits(versions.critic, number - 1), ())

    def _goals(self, folder: str, number: int, steering: Steering, num: int) -> list[AttackGoal]:
        """Each stands there once for every try; a try's place gives it a seed of its own."""
        chance, params = self._chance(number, f"{folder}-goals"), self.params
        drawn = max(1, round(num / (1 + params.twin_share + params.counterfactual_share)))
        goals = self.maker.goals(self.archive, steering, self.cells, drawn, chance)
        twins = [self.maker.twin(goal) for goal in goals if chance.random() < params.twin_share]
        swapped = self.pairmaker.swapped(goals, params.counterfactual_share, chance)
        goals = [*goals, *twins, *swapped]
        if params.prompted:
            goals = [self.maker.briefed(goal, self.archive, chance) for goal in goals]
        return [goal for goal in goals for _ in range(params.num_tries)]

    def _seen(self, number: int, outcome: Outcome) -> Seen:
        """A played round as the controller sees it: by the Critic, but for what became of it."""
        played = self.played[number]
        benign = [turnout for turnout in played.turnouts if not _is_attack(turnout)]
        return Seen(
            attack_success=Share.mean(attempt.success for attempt in played.attempts),
            over_refusal=Share.mean(turnout.refusal for turnout in benign),
            look_alike_refusal=Share.mean(turnout.refusal for turnout in benign if turnout.attack.goal.claim),
            archives=[self.played[earlier].figures for earlier in range(1, number + 1)],
            cell_rates=played.cell_rates,
            retained=outcome.retained,
            passed=outcome.passed,
        )

    def _chance(self, number: int, purpose: str) -> random.Random:
        return random.Random(f"{self.context.lineage}-{self.context.seed}-{number}-{purpose}")

    def _seed(self, folder: str, purpose: str) -> int:
        return random.Random(f"{self.context.lineage}-{self.context.seed}-{folder}-{purpose}").randrange(2**31)


def round_folder(number: int) -> str:
    """Below the lineage's."""
    return f"rounds/round-{number}"


def _ahead(number: int) -> str:
    return f"{round_folder(number)}/ahead"


def _is_attack(turnout: Turnout) -> bool:
    return turnout.attack.goal.kind == "attack"


def _is_plain(attack: Attack) -> bool:
    return not attack.history and attack.goal.swapped is None


def _succeeded(turnout: Turnout) -> bool:
    """It misled the Actor; of a harmless question: it was refused."""
    return bool(turnout.success if _is_attack(turnout) else turnout.refusal)


def _entry(turnout: Turnout) -> Entry:
    return Entry(turnout.attack, turnout.success, turnout.worst_answer, turnout.embedding)


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
