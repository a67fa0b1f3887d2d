"""The tables of a campaign on a terminal of 100 columns: what decides in one, the rest in those of the details.

Knows rows and words; where rows come from is the business of `campaign`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from vcllm.contracts.archive import ArchiveFigures, LanguageDiversity
from vcllm.contracts.base import Language
from vcllm.contracts.campaigns import Campaign, CampaignRound
from vcllm.contracts.measure import Measure
from vcllm.contracts.rounds import Phase, RoundWork

TITLE = (
    "Shares in % with 95 % intervals. fresh: attacks of the round that won;\n"
    "frozen: held-out ones; retained: those kept from earlier rounds that win again"
)
NOTHING = "–"
PHASES: dict[Phase, str] = {
    "attack": "attack",
    "answer": "answer",
    "critique": "critique",
    "compare": "com-\npare",
    "pair": "pair",
    "train_actor": "train\nactor",
    "train_attacker": "train\nattacker",
    "train_critic": "train\ncritic",
    "measure": "measure",
    "gate": "gate",
}
"""Of a round, in the order of the work."""
MAKERS = ("attacker", "actor", "critic", "round")

Column = tuple[str, Callable[[CampaignRound], str]]
"""Its heading, and what stands there of a round."""
NUMBER: Column = ("#", lambda row: str(row.number))


def campaign_facts(campaign: Campaign) -> Table:
    """What it is and where it stands; texts are never read as markup."""
    told = f"{campaign.state.value}, to stop after the round in progress" if campaign.stopping else campaign.state.value
    facts = [
        ("campaign", campaign.lineage),
        ("recipe", f"{campaign.recipe}, seed {campaign.seed}"),
        ("job", f"{campaign.job}, {told}"),
        ("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(campaign.created))),
        ("stage", campaign.stage),
        ("error", campaign.error),
        ("served", campaign.served),
        ("judge", _told_judge(campaign.rounds)),
        ("held", ", ".join(campaign.held)),
        ("reviews", f"{campaign.reviews} answers wait for a person" if campaign.reviews else ""),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts:
        if text:
            grid.add_row(name, Text(text))
    return grid


def rounds_table(rounds: Sequence[CampaignRound]) -> Table:
    """What each round has come to; round 0 is the version before the first."""
    columns: list[Column] = [
        NUMBER,
        ("fresh", lambda row: told_share(row.fresh)),
        ("frozen", lambda row: told_share(row.frozen)),
        ("retained", lambda row: told_share(row.retained)),
        ("over-\nrefusal", lambda row: told_share(row.over_refusal)),
        ("zh, en\nagree", lambda row: told_share(row.agreement)),
        ("cells\ntried", lambda row: _percent(_archive(row, lambda one: one.coverage))),
        ("pairs", lambda row: str(row.num_pairs) if row.number else ""),
        ("gate", told_gate),
    ]
    return _table(TITLE, columns, rounds)


def detail_tables(rounds: Sequence[CampaignRound]) -> Iterator[Table]:
    """What the first table leaves out; rounds of which no work is known are not in them."""
    worked = [row for row in rounds if row.work is not None]
    if worked:
        yield _funnel(worked)
        yield _archive_table(worked)
        yield _time_table(worked)
        yield _speed_table(worked)
        yield _steering(worked)


def told_share(measure: Measure | None) -> str:
    """In per cent with its interval: `4.5 (2–8)`, `33 (27–40)`; 12 columns at most."""
    if measure is None or measure.value is None or measure.low is None or measure.high is None:
        return NOTHING
    share = 100 * measure.value
    told = f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
    return f"{told} ({100 * measure.low:.0f}–{100 * measure.high:.0f})"


def told_gate(row: CampaignRound) -> str:
    """The decision; nothing where no candidate was trained or judged."""
    if row.gate is None:
        return NOTHING
    return row.gate.decision or ("promote" if row.gate.passed else "reject")


def told_counts(counts: Mapping[str, int]) -> str:
    """Most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name.replace('_', ' ')} {num}" for name, num in ordered if num) or NOTHING


def _told_judge(rounds: Sequence[CampaignRound]) -> str:
    """Whose word the figures and the gate are; empty before there are any."""
    if not rounds:
        return ""
    return f"Critic version {rounds[-1].judge}" if rounds[-1].judge else "the starter's rules over the cards"


def _funnel(rounds: Sequence[CampaignRound]) -> Table:
    columns: list[Column] = [
        NUMBER,
        ("asked", lambda row: str(_work(row).pairs.judged + sum(_work(row).dropped.values()))),
        ("attacks dropped", lambda row: told_counts(_work(row).dropped)),
        ("judged", lambda row: str(_work(row).pairs.judged)),
        ("no pair of them", lambda row: told_counts(_work(row).pairs.dropped)),
        ("kept", lambda row: str(_work(row).pairs.kept)),
        ("by source", lambda row: told_counts(_work(row).pairs.sources)),
        ("re-\nplayed", lambda row: str(row.num_replayed)),
        ("put to\npeople", lambda row: str(_work(row).pairs.reviews)),
        ("pre-\npared", lambda row: str(_work(row).num_ahead)),
    ]
    return _table("From what was asked of the Attacker to the pairs", columns, rounds)


def _archive_table(rounds: Sequence[CampaignRound]) -> Table:
    columns: list[Column] = [
        NUMBER,
        ("cells\ntried", lambda row: _percent(_archive(row, lambda one: one.coverage))),
        ("cells\nwon", lambda row: _percent(_archive(row, lambda one: one.coverage_won))),
        ("even-\nness", lambda row: _decimal(_archive(row, lambda one: one.evenness))),
        ("QD-\nscore", lambda row: _decimal(_archive(row, lambda one: one.qd_score))),
        ("elites", lambda row: _whole(_archive(row, lambda one: one.num_elites))),
        *((f"{tongue}\nalike", _diversity(tongue, lambda one: one.self_similarity)) for tongue in Language),
        *((f"{tongue}\ndistinct", _diversity(tongue, lambda one: one.distinct)) for tongue in Language),
        ("weakest cells", _told_weakest),
    ]
    title = (
        "The archive; shares in %. Of the round's own attacks, alike: how similar two of them are;\n"
        "distinct: different character n-grams among all"
    )
    return _table(title, columns, rounds)


def _time_table(rounds: Sequence[CampaignRound]) -> Table:
    seen = {phase for row in rounds for phase in _work(row).seconds}
    columns: list[Column] = [NUMBER]
    columns += [(name, _seconds(phase)) for phase, name in PHASES.items() if phase in seen]
    columns.append(("all", lambda row: f"{row.seconds:.0f}"))
    return _table("Seconds by phase", columns, rounds)


def _speed_table(rounds: Sequence[CampaignRound]) -> Table:
    columns: list[Column] = [NUMBER]
    columns += [(maker, _speed(maker)) for maker in MAKERS]
    return _table("Pairs per minute of work", columns, rounds)


def _steering(rounds: Sequence[CampaignRound]) -> Table:
    columns: list[Column] = [
        NUMBER,
        ("benign", lambda row: _percent(_dial(row, "benign_share"))),
        ("look-\nalikes", lambda row: _percent(_dial(row, "look_alike_share"))),
        ("explore", lambda row: _decimal(_dial(row, "explore"))),
        ("trains", _told_trains),
        ("why", _told_why),
    ]
    return _table("How each round was steered; shares in %", columns, rounds)


def _table(title: str, columns: Sequence[Column], rounds: Sequence[CampaignRound]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    texts = ("why", "weakest cells", "attacks dropped", "no pair of them", "by source", "trains")
    for name, _ in columns:
        table.add_column(name, justify="left" if name in texts else "right", no_wrap=name not in texts)
    for row in rounds:
        table.add_row(*(Text(told(row)) for _, told in columns))
    return table


def _work(row: CampaignRound) -> RoundWork:
    return row.work or RoundWork()


def _archive(row: CampaignRound, figure: Callable[[ArchiveFigures], float | None]) -> float | None:
    found = _work(row).archive
    return None if found is None else figure(found)


def _diversity(
    language: Language, figure: Callable[[LanguageDiversity], float | None]
) -> Callable[[CampaignRound], str]:
    def told(row: CampaignRound) -> str:
        found = _work(row).archive
        own = None if found is None else found.diversity.get(language)
        return _percent(None if own is None else figure(own))

    return told


def _told_weakest(row: CampaignRound) -> str:
    found = _work(row).archive
    return "" if found is None else ", ".join(found.weakest[:3])


def _seconds(phase: Phase) -> Callable[[CampaignRound], str]:
    return lambda row: f"{_work(row).seconds[phase]:.1f}" if phase in _work(row).seconds else ""


def _speed(maker: str) -> Callable[[CampaignRound], str]:
    return lambda row: _decimal(_work(row).pairs_per_minute.get(maker))


def _dial(row: CampaignRound, name: str) -> float | None:
    steering = _work(row).steering
    return None if steering is None else getattr(steering, name)


def _told_trains(row: CampaignRound) -> str:
    steering = _work(row).steering
    return "" if steering is None else ", ".join(steering.trains)


def _told_why(row: CampaignRound) -> str:
    """Of the steering, and of the end where the rounds ended."""
    steering, stop = _work(row).steering, _work(row).stop
    return " ".join(part for part in (steering.reason if steering is not None else "", stop) if part)


def _percent(share: float | None) -> str:
    """Three figures: `4.5`, `12.3`, `100`."""
    if share is None:
        return NOTHING
    return "100" if share >= 0.9995 else f"{100 * share:.1f}"


def _decimal(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"
