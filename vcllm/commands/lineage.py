"""`vcllm lineage`: what a version was made of, and where a pair went."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vcllm.commands.api import open_api
from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError
from vcllm.commands.options import Key, Url
from vcllm.contracts.critiques import Critique
from vcllm.contracts.gates import Gated
from vcllm.contracts.lineage import PairStamp, PairTrace, VersionTrace

SHOWN_PAIRS = 10
"""Pairs of a version that are listed; `--json` has them all."""
ID_LENGTH = 12
"""Hex digits of an id that are shown."""


def lineage(
    version: Annotated[
        str | None,
        typer.Argument(help="A version, as a reply's `model` or x-vc-version names it; or its system_fingerprint."),
    ] = None,
    role: Annotated[str, typer.Option(help="attacker, actor or critic.")] = "actor",
    pair: Annotated[str | None, typer.Option(help="A pair's id, or its first eight or more hex digits.")] = None,
    line: Annotated[str | None, typer.Option("--lineage", help="The pair's lineage.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """From a reply's version to its pairs, their critiques and the Attacker; or from a pair to who learned from it."""
    if (version is None) == (pair is None):
        raise CommandError("Name a version, or a pair with --pair and --lineage.")
    if pair is not None and line is None:
        raise CommandError("A pair belongs to a lineage: name it with --lineage.")
    named = version if version is None or "/" in version else f"{role}/{version}"
    path = f"/v1/lineage/versions/{named}" if pair is None else f"/v1/lineage/pairs/{line}/{pair}"
    with open_api(url, key) as api:
        found = api.get(path)
    console = open_console()
    if as_json:
        console.print_json(data=found)
    elif pair is None:
        show_version(VersionTrace.model_validate(found), console)
    else:
        show_pair(PairTrace.model_validate(found), console)


def show_version(trace: VersionTrace, console: Console) -> None:
    """What it is, what it comes from, whether it passed, and what it learned from whom."""
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(trace.created))
    facts = [
        ("version", f"{trace.role}/{trace.name}"),
        ("lineage", trace.lineage + (f", round {trace.round}" if trace.round else "")),
        ("made", f"{made} by stage {trace.stage} of {trace.job}"),
        *([("trace", trace.trace)] if trace.trace is not None else []),
        ("trained from", " ← ".join(trace.parents) or "nothing"),
        ("recipe", trace.recipe_hash[:ID_LENGTH]),
        ("charter", trace.charter[:ID_LENGTH]),
        ("data", trace.dataset[:ID_LENGTH]),
        *_gate_facts(trace.gate),
        ("new pairs", _told_sources(trace)),
    ]
    if trace.replayed:
        facts.append(("seen again", f"{len(trace.replayed)} pairs of earlier rounds"))
    console.print(_facts(facts))
    if trace.makers:
        console.print(_makers_table(trace))
        console.print(_pairs_table(trace.pairs[:SHOWN_PAIRS]))
    if (rest := len(trace.pairs) - SHOWN_PAIRS) > 0:
        _say(console, f"and {rest} more: --json lists them all.")
    if trace.pairs:
        _say(console, f"One of them: vcllm lineage --lineage {trace.lineage} --pair {trace.pairs[0].id[:ID_LENGTH]}")


def show_pair(trace: PairTrace, console: Console) -> None:
    """What was asked and answered, what the Critic said of both answers, who made it, and which versions saw it."""
    pair, made = trace.pair, trace.pair.provenance
    turns = [(message.role, message.content) for message in pair.history]
    seen = {"waiting": "nobody yet; it waits", "given_up": f"nobody: {trace.reason}", "used": trace.used_by or ""}
    rejected = [("rejected", pair.rejected), ("critique", _told_critique(pair.rejected_critique))]
    facts = [
        ("pair", trace.id),
        ("cell", f"{pair.cell.key}, {pair.kind}, {pair.source}, card {pair.card}"),
        *turns,
        ("query", pair.query),
        ("chosen", pair.chosen),
        ("critique", _told_critique(pair.chosen_critique)),
        *((name, text) for name, text in rejected if text),
        ("attacker", made.attacker),
        ("actor", made.actor),
        ("critic", made.critic),
        ("made in", f"{made.lineage}, round {made.round}, trace {made.trace}"),
        ("first used by", seen[trace.state]),
        ("seen again by", ", ".join(trace.replayed_by) or "nobody"),
    ]
    console.print(_facts(facts))
    if trace.used_by:
        _say(console, f"That version: vcllm lineage {trace.used_by}")


def _gate_facts(gate: Gated | None) -> Iterable[tuple[str, str]]:
    if gate is None:
        return
    verdict = gate.verdict.decision or ("promote" if gate.verdict.passed else "reject")
    yield "gate", f"{verdict}, measured against {gate.parent}"
    for check in gate.verdict.checks:
        if check.open or not check.passed:
            yield "", f"{check.name}: {check.detail}"
    if gate.decided is not None:
        note = f": {gate.decided.note}" if gate.decided.note else ""
        yield "decided", f"{gate.decided.decision}, by key {gate.decided.by}{note}"


def _told_sources(trace: VersionTrace) -> str:
    counts = ", ".join(f"{number} {source}" for source, number in trace.sources.items())
    lost = f"{len(trace.missing)} no longer in the stream" if trace.missing else ""
    return ", ".join(part for part in (counts, lost) if part) or "none"


def _told_critique(critique: Critique | None) -> str:
    if critique is None:
        return ""
    score = "unscored" if critique.score is None else f"score {critique.score:.2f}"
    return f"{critique.outcome.value}, {score}" + (f": {critique.reason}" if critique.reason else "")


def _makers_table(trace: VersionTrace) -> Table:
    table = Table("attacker", "answers by", "critic", "source", "pairs", box=box.SIMPLE_HEAD, title_justify="left")
    for one in trace.makers:
        table.add_row(one.attacker, one.actor, one.critic, one.source, str(one.num_pairs))
    return table


def _pairs_table(pairs: Iterable[PairStamp]) -> Table:
    table = Table("pair", "cell", "kind", "chosen", "rejected", "seen again by", box=box.SIMPLE_HEAD)
    for one in pairs:
        scores = [f"{score:.2f}" if score is not None else "" for score in (one.chosen_score, one.rejected_score)]
        table.add_row(one.id[:ID_LENGTH], one.cell.key, one.kind, *scores, ", ".join(one.replayed_by))
    return table


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    """Names and texts in two columns; texts of models are never read as markup."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts:
        grid.add_row(name, Text(text))
    return grid


def _say(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)
