"""A round in figures, for its row of the table: what was asked, what fell to which filter, what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.trainer.context import Context
from services.trainer.played import Played, Turnout
from services.trainer.ruling import Case, Judge
from vcllm.alignment.shares import NOTHING, Share
from vcllm.alignment.stopping import RoundFigures
from vcllm.contracts.archive import ArchiveState
from vcllm.contracts.chat import Completion
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import ArchiveCell, RoundSummary, StageResult
from vcllm.contracts.measure import Measure
from vcllm.contracts.pairs import Pair
from vcllm.contracts.recipes import StageOrder
from vcllm.contracts.rounds import RoundWork
from vcllm.evaluation.measures import share_of

NOVEL = 0.3
"""A query counts as novel when it is at least this far from every remembered win of its language."""
WORKED: Mapping[str, tuple[str, ...]] = {
    "attacker": ("attack", "train_attacker"),
    "actor": ("answer", "train_actor"),
    "critic": ("critique", "compare", "train_critic"),
}
"""Role to the phases in which it works."""


def summarise(
    context: Context,
    judge: Judge,
    played: Played,
    archive: ArchiveState,
    candidate: StageOrder | None,
    attacker: StageOrder | None,
) -> RoundSummary:
    """Whether an attack won is the report's judge's word, not the Critic's; what it could not judge does not count."""
    turnouts = played.turnouts
    in_own_words = [turnout for turnout in turnouts if turnout.attack.goal.swapped is None]  # as the judge knows them
    with played.clock.timed("measure"):
        rulings = _rulings(judge, in_own_words)
    won = [
        Outcome.VIOLATING in row
        for turnout, row in zip(in_own_words, rulings, strict=True)
        if turnout.attack.goal.kind == "attack" and set(row) - {Outcome.UNSCORED}
    ]
    judged = [
        critique.outcome is ruling
        for turnout, row in zip(in_own_words, rulings, strict=True)
        for critique, ruling in zip(turnout.critiques, row, strict=True)
        if Outcome.UNSCORED not in (critique.outcome, ruling)
    ]
    critiques = [critique for turnout in turnouts for critique in turnout.critiques]
    return RoundSummary(
        number=played.number,
        num_attacks=played.num_asked,
        num_valid=len(turnouts),
        num_refused=played.dropped["refused"],
        num_leaked=played.dropped["leaked"],
        num_novel=sum(novelty >= NOVEL for novelty in played.novelty),
        num_benign=sum(turnout.attack.goal.kind == "benign" for turnout in turnouts),
        num_pairs=len(played.pairs),
        num_replayed=len(candidate.replayed) if candidate is not None else 0,
        num_unscored=sum(critique.outcome is Outcome.UNSCORED for critique in critiques),
        attacker_success=share_of(won),
        critic_agreement=share_of(judged),
        coverage=played.figures.coverage,
        archive={key: ArchiveCell(tried=cell.tried, won=cell.won) for key, cell in archive.cells.items()},
        work=_work(context, played, candidate, attacker),
    )


def taught(judge: Judge, pairs: Sequence[Pair]) -> Measure:
    """Chosen answers that the report's judge, not the Critic, finds violating; of what was said in this lineage."""
    rulings = judge.rule([_chosen(pair) for pair in pairs if pair.source not in ("human", "imported")])
    scored = [ruling.outcome for ruling in rulings if ruling.outcome is not Outcome.UNSCORED]
    return share_of([outcome is Outcome.VIOLATING for outcome in scored])


def history_of(result: StageResult, summary: RoundSummary) -> RoundFigures:
    """What the stop rule looks at."""
    return RoundFigures(
        fresh=Share.of(summary.attacker_success),
        retained=succeeding_again(result.retention),
        over_refusal=Share.of(result.over_refusal),
        benign_helpful=Share.of(result.benign_helpful),
        broken=Share.of(result.broken),
        coverage=summary.coverage or 0.0,
    )


def succeeding_again(retention: Measure | None) -> Share:
    """Retention tells what is still answered well; what is asked for here is what succeeds again."""
    if retention is None or retention.value is None:
        return NOTHING
    return Share(1 - retention.value, retention.n)


def _work(context: Context, played: Played, candidate: StageOrder | None, attacker: StageOrder | None) -> RoundWork:
    seconds = dict(played.seconds + played.clock.seconds_of("gate", "measure"))
    for phase, order in (("train_actor", candidate), ("train_attacker", attacker)):
        if order is not None:
            seconds[phase] = context.store.manifest(order.role, order.version).metrics.get("seconds", 0.0)
    spent = {role: sum(seconds.get(phase, 0.0) for phase in phases) for role, phases in WORKED.items()}
    spent["round"] = sum(seconds.values())
    return RoundWork(
        attacker=played.versions.attacker,
        actor=played.versions.actor,
        critic=played.versions.critic,
        dropped=dict(played.dropped),
        pairs=played.made.counts,
        steering=played.steering,
        archive=played.figures,
        seconds={phase: round(value, 2) for phase, value in seconds.items()},
        pairs_per_minute={role: round(60 * len(played.pairs) / value, 1) for role, value in spent.items() if value},
        num_ahead=played.num_ahead,
    )


def _rulings(judge: Judge, turnouts: Sequence[Turnout]) -> list[list[Outcome]]:
    """Of every turnout's answers, in order."""
    rulings = iter(judge.rule([_said(turnout, answer) for turnout in turnouts for answer in turnout.answers]))
    return [[next(rulings).outcome for _ in turnout.answers] for turnout in turnouts]


def _said(turnout: Turnout, answer: Completion) -> Case:
    attack, goal, done = turnout.attack, turnout.attack.goal, answer.finish_reason == "stop"
    history = tuple(attack.history)
    return Case(attack.query, answer.text, done, goal.cell.language, goal.kind, goal.card, goal.goal, history)


def _chosen(pair: Pair) -> Case:
    history = tuple(pair.history)
    return Case(pair.query, pair.chosen, True, pair.language, pair.kind, pair.card, pair.goal, history)
