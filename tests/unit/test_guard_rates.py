"""How often a Critic is wrong as a guard, by the report's judge, and how that is told."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from gateway.routes.guard import rates_of
from services.trainer.guarding import MOST_ANSWERS, chosen, guard_figures
from vcllm.commands import guard as command
from vcllm.commands.guard import told_rate
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, CritiqueReply, CritiqueRequest, Outcome
from vcllm.contracts.evaluation import UNMEASURED, EvalItem, Judgement, Measure
from vcllm.contracts.guard import GuardPolicy, GuardReply
from vcllm.evaluation.guardrates import GRID, Row, guard_stage

V, C, B, R, U = Outcome.VIOLATING, Outcome.CONSISTENT, Outcome.BROKEN, Outcome.REFUSAL, Outcome.UNSCORED


def row(number: int, outcome: Outcome, answer: str = "") -> Row:
    item = EvalItem(
        id=f"i{number}",
        pair_id=f"p{number}",
        language=Language.EN,
        kind="attack",
        suite="held_out",
        card=f"card-{number}",
        goal=0,
        subdomain="soc.class",
        tactic="t",
        query="Why?",
    )
    return item, Judgement(item=item.id, answer=answer or f"{number}", outcome=outcome)


def critique(violating: float) -> Critique:
    outcome = V if violating > 0.5 else C
    return Critique(outcome=outcome, score=1 - violating, probabilities={V: violating, C: 1 - violating})


def rate(rows: list[Row], critiques: list[Critique | None], threshold: float) -> tuple[Measure, Measure]:
    found = guard_stage("sft", "v", rows, critiques, threshold)
    return next((each.miss, each.false_block) for each in found.rates if each.threshold == threshold)


def test_a_miss_is_a_violation_that_passes_and_a_false_block_is_any_other_that_does_not():
    """Refusals and broken answers are others: blocking them shows nobody anything."""
    rows = [row(1, V), row(2, V), row(3, V), row(4, C), row(5, B), row(6, R), row(7, C)]
    critiques = [critique(p) for p in (0.9, 0.4, 0.1, 0.9, 0.1, 0.1, 0.4)]

    miss, false_block = rate(rows, critiques, 0.5)
    lower = rate(rows, critiques, 0.35)

    assert (miss.value, miss.n) == (pytest.approx(2 / 3), 3)
    assert (false_block.value, false_block.n) == (0.25, 4)
    assert (lower[0].value, lower[1].value) == (pytest.approx(1 / 3), 0.5)
    assert miss.low is not None and miss.high is not None and miss.low < 2 / 3 < miss.high


def test_what_the_critic_cannot_judge_is_in_no_rate():
    """It is counted beside them."""
    rows = [row(1, V), row(2, V), row(3, C)]

    found = guard_stage("sft", "v", rows, [None, critique(0.9), Critique(outcome=U, failure="too_long")], 0.5)

    assert (found.unscored, found.rates[0].miss.n, found.rates[0].false_block) == (2, 1, UNMEASURED)


def test_every_threshold_of_the_grid_is_measured_and_the_charters_own():
    assert [each.threshold for each in guard_stage("s", "v", [row(1, V)], [critique(0.5)], 0.42).rates] == sorted(
        (*GRID, 0.42)
    )


def test_answers_are_chosen_by_their_item_alone():
    """So many of each kind, the same whatever their order."""
    rows = [row(number, V if number % 3 else C) for number in range(1500)] + [row(2000, U)]

    found = chosen(rows)

    assert found == chosen(rows[::-1])
    assert [one.outcome for _, one in found].count(V) == [one.outcome for _, one in found].count(C) == MOST_ANSWERS


# In the report


class FakeCritic:
    """Finds everything violating whose answer says so."""

    def __init__(self) -> None:
        self.requests: list[CritiqueRequest] = []

    def critiques(self, request: CritiqueRequest) -> CritiqueReply:
        self.requests.append(request)
        found = [critique(0.9 if "bad" in item.response else 0.1) for item in request.items]
        return CritiqueReply(critiques=found, critic_version=request.model or "")


def surroundings(critic: str | None = "critic-1", judge: str | None = None) -> Any:
    return SimpleNamespace(
        aliases=SimpleNamespace(get=lambda role: critic),
        recipe=SimpleNamespace(evaluation=SimpleNamespace(judge=judge)),
        charter=SimpleNamespace(charter=SimpleNamespace(guard=GuardPolicy())),
        hold=SimpleNamespace(go_on=lambda: None),
        critic=FakeCritic(),
    )


def stage(name: str) -> Any:
    return SimpleNamespace(name=name, version=f"line-{name}", gate=None)


def test_a_report_looks_at_the_base_and_at_what_is_served():
    """By the Critic that is current; an answer that no Critic takes is unscored."""
    rows = {name: [row(1, V, "bad"), row(2, V, "fine"), row(3, C, "x" * 16_001)] for name in ("base", "sft", "round-1")}
    items = [item for item, _ in rows["base"]]
    judgements = {name: [judgement for _, judgement in found] for name, found in rows.items()}
    context = surroundings()

    figures = guard_figures(context, [stage("base"), stage("sft"), stage("round-1")], items, judgements)

    assert figures is not None
    assert [(each.stage, each.version) for each in figures.stages] == [
        ("base", "line-base"),
        ("round-1", "line-round-1"),
    ]
    assert figures.critic == "critic-1"
    assert {request.model for request in context.critic.requests} == {"critic-1"}
    assert figures.stages[1].unscored == 1
    assert [each.miss.value for each in figures.stages[1].rates if each.threshold == 0.5] == [0.5]


@pytest.mark.parametrize("context", [surroundings(critic=None), surroundings(judge="critic-1")])
def test_a_critic_that_is_the_judge_is_not_measured(context: Any):
    """It would find itself right."""
    assert guard_figures(context, [stage("base")], [row(1, V)[0]], {"base": [row(1, V)[1]]}) is None


# As it is told


def test_rates_are_told_of_the_current_critic_at_the_current_threshold_only():
    rows = [row(1, V), row(2, C)]
    context = surroundings()
    figures = guard_figures(context, [stage("base")], [row[0] for row in rows], {"base": [row[1] for row in rows]})

    found = rates_of(figures, "critic-1", 0.5)

    assert not isinstance(found, str) and found[1].threshold == 0.5
    assert "no report" in str(rates_of(None, "critic-1", 0.5))
    assert "not the current one" in str(rates_of(figures, "critic-2", 0.5))
    assert "this threshold" in str(rates_of(figures, "critic-1", 0.512))


def test_a_rate_is_told_with_its_interval_and_n():
    assert told_rate(Measure(value=0.051, low=0.0, high=0.12, n=60)) == "5.1 % (0.0-12.0 %, n = 60)"
    assert told_rate(UNMEASURED) == told_rate(None) == "not measured"


def test_the_command_tells_all_of_it():
    """How the guard stands, and what other thresholds would do."""
    rows = [row(1, V, "bad"), row(2, C)]
    figures = guard_figures(
        surroundings(), [stage("base")], [row[0] for row in rows], {"base": [row[1] for row in rows]}
    )
    assert figures is not None
    policy = GuardPolicy()
    reply = GuardReply(
        mode="enforce",
        policy="pluralist@01234567:enforce",
        charter="pluralist",
        charter_hash="0123456789",
        charter_mode=policy.mode,
        **policy.model_dump(exclude={"mode"}),
        critic_version="critic-1",
        stage="base",
        miss=figures.stages[0].rates[9].miss,
    )
    told = io.StringIO()
    console = Console(width=200, file=told)

    console.print(command.facts_of(reply))
    console.print(command.rates_of(figures))

    text = told.getvalue()
    assert "enforce (the charter's is off)" in text
    assert "0.0 % (0.0-100.0 %, n = 1) on answers of base" in text
    assert "0.95" in text
