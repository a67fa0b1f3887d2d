"""`vcllm lineage` and `vcllm models held, promote, reject`: what they ask of a gateway and what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.test_cli import FakeGateway, gateway, run
from tests.unit.test_stores_pairs import pair
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.gates import Decided, Gated
from vcllm.contracts.lineage import PairMakers, PairStamp, PairTrace, VersionTrace
from vcllm.contracts.manifests import GateCheck, GateVerdict

__all__ = ["gateway", "run"]
"""Fixtures of the command line's tests."""

OPEN = GateCheck(name="retention", passed=True, value=0.8, limit=0.85, detail="a change of -0.050", open=True)
HELD = Gated(
    lineage="line",
    candidate="line-r2",
    parent="line-r1",
    verdict=GateVerdict(passed=False, checks=[OPEN], decision="hold"),
    judged=1.0,
)


def stamp(number: int) -> PairStamp:
    return PairStamp(
        id=f"{number:02d}" * 32,
        kind="attack",
        cell=pair(1).cell,
        source="on_policy",
        attacker="line-attacker-r1",
        actor="line-r1",
        critic="line-critic",
        chosen_score=0.9,
        rejected_score=0.1,
        trace="t",
        replayed_by=["line-r3"] if number == 1 else [],
    )


def version_trace(**fields: Any) -> VersionTrace:
    makers = PairMakers(
        attacker="line-attacker-r1", actor="line-r1", critic="line-critic", source="on_policy", num_pairs=12
    )
    given = {
        "role": "actor",
        "name": "line-r2",
        "lineage": "line",
        "stage": "preference",
        "round": 2,
        "created": 1.0,
        "parents": ["actor/line-r1", "actor/line-sft"],
        "recipe_hash": "a" * 64,
        "charter": "b" * 64,
        "dataset": "c" * 64,
        "job": "job-1",
        "gate": HELD,
        "makers": [makers],
        "sources": {"on_policy": 12},
        "pairs": [stamp(number) for number in range(12)],
    }
    return VersionTrace.model_validate(given | fields)


def reply(contract: Any) -> list[Any]:
    return [contract.model_dump(mode="json")]


def asked(gateway: FakeGateway) -> tuple[str, Any]:
    route, _, body = gateway.asked[-1]
    return route, body


def test_a_version_is_walked_to_its_attacker(run: Any, gateway: FakeGateway) -> None:
    """What it comes from, why it was held, who made its pairs, and the next step."""
    gateway.answers["GET /v1/lineage/versions/actor/line-r2"] = reply(version_trace())

    result = run("lineage", "line-r2", "--url", gateway.url, "--key", "k")

    assert result.exit_code == 0, result.output
    for told in (
        "actor/line-r1 ← actor/line-sft",
        "hold, measured against line-r1",
        "retention: a change of -0.050",
        "line-attacker-r1",
        "0.90",
        "line-r3",
        "and 2 more",
        "vcllm lineage --lineage line --pair 000000000000",
    ):
        assert told in result.output


def test_a_parent_is_walked_as_it_was_shown(run: Any, gateway: FakeGateway) -> None:
    """`role/version` is taken whole; another role is an option, too."""
    attacker = version_trace(role="attacker", name="line-attacker", gate=None, makers=[], sources={}, pairs=[])
    gateway.answers["GET /v1/lineage/versions/attacker/line-attacker"] = reply(attacker)
    words = ["--url", gateway.url, "--key", "k"]

    first = run("lineage", "attacker/line-attacker", *words)
    second = run("lineage", "line-attacker", "--role", "attacker", *words)

    assert first.exit_code == 0
    assert first.output == second.output
    assert "new pairs     none" in first.output


def test_a_pair_is_walked_to_its_versions(run: Any, gateway: FakeGateway) -> None:
    """Query, answers and critiques as they are; a model's words are no markup."""
    hostile = pair(1).model_copy(
        update={
            "query": "[red]Is it so?[/nothing]",
            "rejected": "Yes.",
            "margin": 0.8,
            "rejected_critique": Critique(outcome=Outcome.VIOLATING, score=0.1, reason="It agrees."),
        }
    )
    trace = PairTrace(id="ab" * 32, pair=hostile, state="used", used_by="line-r1", replayed_by=["line-r2"])
    gateway.answers["GET /v1/lineage/pairs/line/abababab"] = reply(trace)

    result = run("lineage", "--pair", "abababab", "--lineage", "line", "--url", gateway.url, "--key", "k")

    assert result.exit_code == 0, result.output
    for told in ("[red]Is it so?[/nothing]", "violating, score 0.10: It agrees.", "attacker-1", "line-r1", "line-r2"):
        assert told in result.output


@pytest.mark.parametrize("state", ["waiting", "given_up"])
def test_a_pair_nobody_learned_from_says_so(run: Any, gateway: FakeGateway, state: str) -> None:
    """Waiting and given up are different things."""
    trace = PairTrace(id="ab" * 32, pair=pair(1), state=state, reason="delivered 6 times")
    gateway.answers["GET /v1/lineage/pairs/line/abababab"] = reply(trace)

    result = run("lineage", "--pair", "abababab", "--lineage", "line", "--url", gateway.url, "--key", "k")

    assert {"waiting": "it waits", "given_up": "delivered 6 times"}[state] in result.output


def test_everything_comes_as_json(run: Any, gateway: FakeGateway) -> None:
    """All pairs, in one document."""
    gateway.answers["GET /v1/lineage/versions/actor/line-r2"] = reply(version_trace())

    result = run("lineage", "line-r2", "--json", "--url", gateway.url, "--key", "k")

    assert VersionTrace.model_validate(json.loads(result.output)) == version_trace()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Name a version, or a pair"),
        (["v", "--pair", "p"], "Name a version, or a pair"),
        (["--pair", "p"], "with --lineage"),
    ],
)
def test_one_thing_is_traced_at_a_time(run: Any, words: list[str], says: str) -> None:
    """A version or a pair; a pair with its lineage."""
    result = run("lineage", *words)

    assert result.exit_code == 1
    assert says in result.output


def test_held_candidates_are_listed(run: Any, gateway: FakeGateway) -> None:
    """With what is open; without any, that is said."""
    gateway.answers["GET /v1/models/held"] = [{"data": reply(HELD)}, {"data": []}]

    some, none = (run("models", "held", "--url", gateway.url, "--key", "k") for _ in range(2))

    assert "line-r2" in some.output
    assert "retention: a change of -0.050" in some.output
    assert "No candidate waits" in none.output


def test_a_held_candidate_is_promoted_or_rejected(run: Any, gateway: FakeGateway) -> None:
    """The note and what is to be replaced go along."""
    word = Decided(decision="promote", by="k1", when=2.0)
    gateway.answers["POST /v1/models/line-r2/promote"] = reply(HELD.model_copy(update={"decided": word}))
    gateway.answers["POST /v1/models/line-r2/reject"] = gateway.answers["POST /v1/models/line-r2/promote"]
    words = ["--note", "seen", "--url", gateway.url, "--key", "k"]

    promoted = run("models", "promote", "line-r2", "--replaces", "line-r3", *words)
    sent = asked(gateway)
    rejected = run("models", "reject", "line-r2", *words)

    assert sent == ("POST /v1/models/line-r2/promote", {"note": "seen", "replaces": "line-r3"})
    assert "line-r2 is current now" in promoted.output
    assert asked(gateway) == ("POST /v1/models/line-r2/reject", {"note": "seen"})
    assert "will not be served" in rejected.output
