"""The adversarial rounds as a whole: who plays each, what is trained of it, what the gate says, when it ends.

A round is played (`rounds`), its versions are trained, the candidate is measured and judged, and the round's row is
written. Whatever was done before is found again, in the same order.
"""

from __future__ import annotations

from services.trainer.asking import Versions
from services.trainer.children import Children
from services.trainer.context import Context
from services.trainer.orders import Orders
from services.trainer.played import Played
from services.trainer.results import Results
from services.trainer.rounds import Outcome, Rounds, round_folder
from services.trainer.stagedata import StageData
from services.trainer.summing import history_of, succeeding_again, summarise, taught
from services.trainer.thresholds import limits_of
from vcllm.alignment.gate import judge_candidate
from vcllm.alignment.refit import due
from vcllm.alignment.stopping import RoundFigures, stop_reason
from vcllm.contracts.charter import Thresholds
from vcllm.contracts.evaluation import EvalItem, StageResult
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.matrix import Matrix
from vcllm.contracts.recipes import StageOrder
from vcllm.evaluation.campaign import campaign_round
from vcllm.evaluation.matrix import make_matrix
from vcllm.evaluation.pairedness import paired_differences
from vcllm.web.tracing import span

NEVER = 1.0
"""A tolerance that nothing exceeds."""
TOLD = "The campaign was told to stop."


def _versions_file(number: int) -> str:
    return f"{round_folder(number)}/versions.json"


class Campaign:
    """The rounds of one lineage."""

    def __init__(self, context: Context, children: Children, orders: Orders, results: Results, data: StageData) -> None:
        self.context, self.children, self.orders, self.results = context, children, orders, results
        self.params = context.recipe.rounds
        self.rounds = Rounds(context, data, lambda critic, number: limits_of(context, critic, number))

    def begin(self) -> None:
        """Make the campaign known by its lineage."""
        context = self.context
        context.campaigns.begin(context.lineage, context.record.id, context.recipe.name, context.seed)

    def start_from(self, order: StageOrder) -> bool:
        """Measure and gate the version before the first round; True when that was done before."""
        reused, parent = (result := self.results.of("sft")) is not None, self.context.version("base")
        if result is None:
            verdict = self._judge(order.version, parent, 1)
            result = self.results.measure("sft", order.version, order.parent, gate=verdict)
            self.results.keep(result)
        if result.gate is not None:
            self._promote(order.version, parent, result.gate)
        self.context.campaigns.put_round(self.context.lineage, campaign_round(result))
        return reused

    def round(self, number: int) -> str:
        """Play, train, judge; `reused` when it was done before, `skipped` when the rounds have ended before it."""
        context = self.context
        if reason := self._ended(number):
            context.tell("round", round=number, phase="skipped", reason=reason)
            return "skipped"
        place = self.rounds.place(round_folder(number))
        with span("round", {"vc.lineage": context.lineage, "vc.round": number}, above=place):
            return self._round(number)

    def _round(self, number: int) -> str:
        """In the trace of its pairs, so that the version that learns from them is in it as well."""
        context, name = self.context, f"round-{number}"
        # 1  attacks, answers, critiques, pairs
        played = self._played_up_to(number)
        if (result := self.results.of(name)) is not None:
            self._make_known(result, played)
            return "reused"
        # 2  train, and attack for the next round meanwhile
        candidate, attacker = self._orders_of(played)
        for order in (candidate, attacker):
            if order is not None:
                self.children.start(order)
        if number < self.params.count and not self._stop_asked():
            self.rounds.prepare(number + 1, played.versions, self._before(number))
        for order in (attacker, candidate):
            if order is not None:
                self.children.wait(order)
        if attacker is not None:
            context.hold.confirm()
            context.aliases.set("attacker", "current", attacker.version)
        # 3  measure, and let the gate decide
        result = self._result_of(played, candidate)
        # 4  write down what the round was, then what becomes of its version
        archive, judge = self.rounds.archive.state(number), self.results.measurer.judge
        summary = summarise(context, judge, played, archive, candidate, attacker)
        history = [*self._history(number), history_of(self._standing(played, result), summary)]
        stop = stop_reason(history, self._limits, self.params.controller)
        assert summary.work is not None, "a summary tells how the round was worked"
        work = summary.work.model_copy(update={"stop": stop})
        result = result.model_copy(update={"round": summary.model_copy(update={"work": work})})
        self.results.keep(result)
        self._make_known(result, played)
        return "finished"

    def matrix(self) -> Matrix | None:
        """Every Attacker's kept queries against every version of the Actor that the rounds left."""
        done = [number for number in range(1, self.params.count + 1) if self.results.round(number) is not None]
        if not done:
            return None
        self._played_up_to(done[-1])
        samples: dict[str, list[EvalItem]] = {}
        for number in done:
            samples.setdefault(self.rounds.played[number].versions.attacker, []).extend(self.rounds.retained(number))
        actors = [self.context.version("sft")]
        actors += [version for number in done if (version := self.results.trained(number)) is not None]
        asked = list({item.id: item for items in samples.values() for item in items}.values())
        if not asked:
            return None
        return make_matrix(samples, {actor: self.results.measurer.judgements(actor, asked) for actor in actors})

    # Who plays.

    def _played_up_to(self, number: int) -> Played:
        """Recall (or play) every round up to this one, in order: each builds on the archive of those before."""
        for earlier in range(1, number + 1):
            if earlier not in self.rounds.played:
                self.rounds.play(earlier, self._versions(earlier), self._before(earlier))
        return self.rounds.played[number]

    def _versions(self, number: int) -> Versions:
        """Who plays a round: decided once, before its first question."""
        file = _versions_file(number)
        if (kept := self.context.recall(file)) is None:
            votes = tuple(self.params.critic.votes)
            versions = Versions(self._attacker(number), self._head(number), self._critic(number), votes)
            kept = versions.as_json()
            self.context.keep(file, kept)
        return Versions.of_json(kept)

    def _head(self, number: int) -> str:
        """The version a round starts from: the newest of the lineage that was promoted, else SFT."""
        for earlier in range(number - 1, 0, -1):
            version = self.results.trained(earlier)
            if version is not None and self._stands(version, self.results.gate(earlier)):
                return version
        return self.context.version("sft")

    def _stands(self, version: str, verdict: GateVerdict | None) -> bool:
        if not self.params.gate.enabled:
            return True
        record = self.context.gates.of(version)
        return record.is_promoted if record is not None else verdict is not None and verdict.passed

    def _attacker(self, number: int) -> str:
        """The newest Attacker that learned of a round before; a hosted one, where the recipe names it."""
        if self.params.hosted_attacker is not None:
            return self.params.hosted_attacker
        names = [f"attacker-r{earlier}" for earlier in range(number - 1, 0, -1)]
        versions = (self.context.version(name) for name in names)
        newest = next((one for one in versions if self.context.store.has("attacker", one)), None)
        return newest or self.context.version("attacker")

    def _critic(self, number: int) -> str:
        """The Critic of a round: fitted again when people have decided enough since it was."""
        context, after = self.context, self.params.critic.refit_after
        names = [f"critic-r{earlier}" for earlier in range(number - 1, 0, -1)]
        newest = next((one for one in names if context.store.has("critic", context.version(one))), "critic")
        learned = context.recall(f"critics/{newest}.json") or 0
        file = f"critics/critic-r{number}.json"
        if (mark := context.recall(file)) is None:
            mark = context.reviews.num_decided() if after else 0
            if not due(mark, learned, after):
                return context.version(newest)
            context.keep(file, mark)  # before it is ordered: resumed, it learns from the very same decisions
        order = self.orders.refitted_critic(number, context.reviews.decided(stop=mark))
        self.children.wait(order)
        context.promote("critic", order.version)
        return order.version

    # What is trained.

    def _orders_of(self, played: Played) -> tuple[StageOrder | None, StageOrder | None]:
        """The round's candidate and its Attacker; None for a role that does not learn of this round."""
        number, trains = played.number, played.steering.trains
        candidate = attacker = None
        if "actor" in trains:
            num_pairs = len(played.pairs)
            replayed = self.rounds.replay(number, num_pairs)
            candidate = self.orders.candidate(number, played.versions.actor, num_pairs, replayed)
        if "attacker" in trains and self.params.attacker_learns:
            rows = self.rounds.attacker_rows(played)
            attacker = self.orders.attacker_update(number, played.versions.attacker, rows)
        return candidate, attacker

    # What the gate says.

    def _result_of(self, played: Played, candidate: StageOrder | None) -> StageResult:
        """The round's figures: of its candidate with the gate's verdict, or of the version that it left as it was."""
        number, parent = played.number, played.versions.actor
        retention = self.rounds.retention(number)
        if candidate is None:
            return self.results.measure(f"round-{number}", parent, parent, retention=retention)
        clock = played.clock
        with clock.timed("gate"):
            verdict = self._judge(candidate.version, parent, number, played)
        with clock.timed("measure"):
            return self.results.measure(
                f"round-{number}", candidate.version, candidate.parent, gate=verdict, retention=retention
            )

    def _judge(self, candidate: str, parent: str, number: int, played: Played | None = None) -> GateVerdict:
        """Play the gate's items against both; dev items and the queries kept from earlier rounds.

        played: the round whose pairs the candidate learned; None: it learned none.
        """
        measurer, params = self.results.measurer, self.params.gate
        retention = self.rounds.retention(number)
        items = [*measurer.gate_items, *retention]
        mine, theirs = measurer.judgements(candidate, items), measurer.judgements(parent, items)
        verdict = judge_candidate(
            measurer.gate_figures(candidate, retention),
            measurer.gate_figures(parent, retention),
            self._limits,
            paired_differences(items, mine, theirs),
            params.tolerance if params.hold else NEVER,
            None if played is None else taught(measurer.judge, played.pairs),
        )
        self.context.tell("gate", version=candidate, **verdict.model_dump(mode="json"))
        return verdict

    def _make_known(self, result: StageResult, played: Played) -> None:
        """The round's row and archive, and what becomes of its candidate: all may be repeated, as after a kill."""
        context = self.context
        context.campaigns.put_round(context.lineage, campaign_round(result))
        context.campaigns.put_archive(self.rounds.archive.state(played.number))
        if result.gate is not None and result.version is not None:
            self._promote(result.version, played.versions.actor, result.gate)

    def _promote(self, version: str, parent: str, verdict: GateVerdict) -> None:
        """Enter the gate's word, and move the alias once: a version that was taken back stays back."""
        context = self.context
        context.hold.confirm()
        if context.gates.of(version) is not None:
            return
        context.aliases.set("actor", "candidate", version)
        if verdict.passed or not self.params.gate.enabled:
            context.promote("actor", version)
        context.enter(f"gate {verdict.decision or ('promote' if verdict.passed else 'reject')}", version)
        context.gates.enter(version, parent, verdict)  # last: until it is there, all of this is done again

    def _before(self, number: int) -> dict[int, Outcome]:
        """What became of the rounds before this one; a gate that decides nothing says nothing."""
        results = {earlier: self.results.round(earlier) for earlier in range(1, number)}
        return {
            earlier: Outcome(
                passed=result.gate.passed if result.gate is not None and self.params.gate.enabled else None,
                retained=succeeding_again(result.retention),
            )
            for earlier, result in results.items()
            if result is not None
        }

    # When it ends.

    def _ended(self, number: int) -> str:
        """Why this round is not played; empty: it is. A round that has begun is never skipped."""
        if self.context.recall(_versions_file(number)) is not None:
            return ""
        done = [result for earlier in range(1, number) if (result := self.results.round(earlier)) is not None]
        last = done[-1].round if done else None
        if last is not None and last.work is not None and last.work.stop:
            return last.work.stop
        return TOLD if self._stop_asked() else ""

    def _stop_asked(self) -> bool:
        return self.context.campaigns.stop_asked(self.context.lineage)

    def _history(self, number: int) -> list[RoundFigures]:
        played = [(self.rounds.played[earlier], self.results.round(earlier)) for earlier in range(1, number)]
        return [
            history_of(self._standing(one, result), result.round)
            for one, result in played
            if result is not None and result.round is not None
        ]

    def _standing(self, played: Played, result: StageResult) -> StageResult:
        """The figures of the version that stands after a round: its candidate's, or its parent's where that fell."""
        parent = played.versions.actor
        if result.version is None or result.version == parent or self._stands(result.version, result.gate):
            return result
        return next((one for one in self.results.all() if one.version == parent), result)

    @property
    def _limits(self) -> Thresholds:
        return self.context.charter.charter.thresholds
