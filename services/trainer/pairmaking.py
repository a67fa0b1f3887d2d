"""From what was said in a round to its approved pairs, and what goes to people instead.

What makes a pair, and of which kind, is decided in `vcllm.alignment`; here the kinds are put together, held against the
evaluation, capped and queued.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from services.trainer.blocking import Blocker
from services.trainer.context import Context
from services.trainer.played import MadePairs, Part, Turnout
from services.trainer.stagedata import StageData
from vcllm.alignment.caps import cap, distinct
from vcllm.alignment.contradictions import contradictions, find_twins
from vcllm.alignment.contrasts import Asked, Contrast, comparisons_of, pairs_of
from vcllm.alignment.counterfactuals import counterfactuals, find_swaps, swap
from vcllm.alignment.pairing import Places, make_pair, wanted_comparisons
from vcllm.alignment.staleness import fresh_enough
from vcllm.alignment.verdicts import Limits
from vcllm.contracts.attacks import AttackGoal
from vcllm.contracts.base import Language
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.reviews import ReviewItem
from vcllm.contracts.rounds import PairCounts

LimitsOf = Mapping[Language, Limits]


class PairMaker:
    """Makes the pairs of a lineage's rounds."""

    def __init__(self, context: Context, data: StageData) -> None:
        self.context, self.data = context, data
        self.params = context.recipe.rounds
        self.policy = self.params.critic
        self._templates: dict[str, str] = {}

    def wanted(self, asked: Sequence[Asked], limits: LimitsOf) -> list[list[Places]]:
        """The comparisons that the pairs of these queries will need, by query."""
        wanted = [
            wanted_comparisons(
                one.attack, one.answers, one.critiques, self.policy, limits[one.language], votes=one.votes
            )
            for one in asked
        ]
        if self.policy.pairwise:
            place = {id(one): i for i, one in enumerate(asked)}
            for contrast in self._contrasts(asked, limits):
                row = wanted[place[id(contrast.asked)]]
                row += [places for places in comparisons_of(contrast, self.policy, limits) if places not in row]
        return wanted

    def make(
        self, parts: Sequence[Part], number: int, now: str, heads: Sequence[str], chance: random.Random
    ) -> MadePairs:
        """Make a round's pairs and queue them, and put before people what the Critic leaves to them.

        heads: the versions that answered in this lineage, in their order; `now` is the one that learns.
        """
        dropped, reviews, pairs = Counter[str](), list[ReviewItem](), list[Pair]()
        for part in parts:
            asked = [self.asked(turnout, number) for turnout in part.turnouts]
            own = self._on_policy(asked, part.limits, dropped, reviews)
            contrasts = self._contrasts(asked, part.limits)
            pairs += [*pairs_of(contrasts, self.policy, part.limits), *own]
        fresh, stale = fresh_enough(distinct(pairs), heads, now, self.params.max_staleness)
        blocked = Blocker(self.data.kept_from_rounds).sift(fresh)
        imported = self.data.imported_pairs(number)
        capped = cap([*blocked.kept, *imported], self.params.max_pairs_per_cell, self.params.source_caps, chance)
        dropped += Counter({"stale": len(stale)}) + blocked.dropped + capped.dropped
        self._queue(capped.kept, reviews)
        counts = PairCounts(
            judged=sum(len(part.turnouts) for part in parts),
            kept=len(capped.kept),
            dropped=dict(+dropped),
            sources=dict(Counter(pair.source for pair in capped.kept)),
            reviews=len(reviews),
        )
        return MadePairs(capped.kept, counts, reviews)

    def swapped(self, goals: Sequence[AttackGoal], share: float, chance: random.Random) -> list[AttackGoal]:
        """Some of the goals about another group, where their words name one."""
        drawn = [goal for goal in goals if share and chance.random() < share]
        swaps = (swap(goal, self.context.charter.card(goal.card), chance) for goal in drawn)
        return [goal for goal in swaps if goal is not None]

    def asked(self, turnout: Turnout, number: int) -> Asked:
        provenance = Provenance(
            attacker=turnout.versions.attacker,
            actor=turnout.versions.actor,
            critic=turnout.versions.critic,
            charter=self.context.charter.hash,
            template=self._template_hash(turnout.versions.actor),
            lineage=self.context.lineage,
            round=number,
            trace=turnout.trace,
        )
        return Asked(turnout.attack, turnout.answers, turnout.critiques, provenance, turnout.votes, turnout.comparisons)

    def _on_policy(
        self, asked: Sequence[Asked], limits: LimitsOf, dropped: Counter[str], reviews: list[ReviewItem]
    ) -> list[Pair]:
        """Best and worst of each query's own answers; why there are none is counted, doubt is added to `reviews`."""
        pairs, now = [], time.time()
        for one in asked:
            made = make_pair(
                one.attack,
                one.answers,
                one.critiques,
                one.provenance,
                self.policy,
                limits[one.language],
                created=now,
                votes=one.votes,
                comparisons=one.comparisons,
            )
            if made.pair is not None:
                pairs.append(made.pair)
            if made.reason is not None:
                dropped[made.reason] += 1
            if made.review is not None:
                reviews.append(made.review)
        return pairs

    def _contrasts(self, asked: Sequence[Asked], limits: LimitsOf) -> list[Contrast]:
        """Pairs whose rejected answer is told by another query: the twin's, or the one about another group."""
        return [
            *contradictions(find_twins(asked), self.policy, limits),
            *counterfactuals(find_swaps(asked), self.policy, limits),
        ]

    def _queue(self, pairs: Sequence[Pair], reviews: Sequence[ReviewItem]) -> None:
        for pair in pairs:
            self.context.hold.go_on()
            self.context.pairs.add(pair)
        for item in reviews:
            self.context.reviews.add(item)

    def _template_hash(self, actor: str) -> str:
        """The chat template in force, by the hash of the file that holds it."""
        if actor not in self._templates:
            files = self.context.store.manifest("actor", actor).files
            self._templates[actor] = files.get("chat_template.jinja") or files.get("tokenizer_config.json", "")
        return self._templates[actor]
