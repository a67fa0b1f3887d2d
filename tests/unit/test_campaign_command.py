"""`vcllm campaign`: what it asks of a gateway, and what it makes of rounds on 100 columns."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.text import Text

from tests.unit.test_campaign_rounds import a_row, work
from tests.unit.test_cli import FakeGateway, event, frames, gateway, run
from tests.unit.test_stores_campaigns import archive
from vcllm.commands.api import Api
from vcllm.commands.board import Board
from vcllm.commands.campaign import RoundsView
from vcllm.commands.campaign_tables import PHASES, detail_tables, rounds_table, told_share
from vcllm.commands.display import PlainDisplay
from vcllm.contracts.base import NAME_PATTERN
from vcllm.contracts.campaigns import Campaign, CampaignRound
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.measure import UNMEASURED, Measure
from vcllm.contracts.recipes import Rounds
from vcllm.contracts.rounds import Steering
from vcllm.recipes import lineage_name, load_recipe

__all__ = ["gateway", "run"]
"""Fixtures of the command line's tests."""

ALL = Measure(value=1.0, low=0.92, high=1.0, n=80)
WIDEST = dict.fromkeys(("fresh", "frozen", "retained", "over_refusal", "agreement"), ALL)
"""Every share as wide as it can be."""


def a_campaign(**fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "lineage": "line",
        "recipe": "starter",
        "seed": 3,
        "job": "job-1",
        "state": "running",
        "stage": "round-2",
        "created": 1.0,
        "rounds": [a_row(1), a_row(2)],
    }
    return Campaign(**given | fields).model_dump(mode="json")


def drawn(*tables: RenderableType) -> str:
    console = Console(width=100, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def words(gateway: FakeGateway, *given: str) -> list[str]:
    return ["campaign", *given, "--url", gateway.url, "--key", "k"]


def test_a_campaign_is_started_under_a_name(run: Any, gateway: FakeGateway):
    """The body as the API wants it, with a key of its own so that a lost reply starts nothing twice."""
    gateway.answers["POST /v1/campaigns"] = [(201, a_campaign(state="queued", rounds=[]))]

    result = run(*words(gateway, "start", "starter", "--lineage", "line", "--seed", "3"))

    assert result.output == "line is queued.\n"
    [(_, headers, body)] = gateway.asked
    assert body == {"recipe": "starter", "lineage": "line", "seed": 3, "validate_only": False}
    assert len(headers["idempotency-key"]) == 32


def test_a_dry_run_says_what_would_run(run: Any, gateway: FakeGateway):
    """Name and stages; nothing is followed."""
    plan = {"valid": True, "recipe": "starter", "lineage": "line", "stages": ["pretrain", "round-1"]}
    gateway.answers["POST /v1/campaigns"] = [plan]

    result = run(*words(gateway, "start", "starter", "--dry-run", "--watch"))

    assert result.output == "line would run: pretrain, round-1.\n"
    assert gateway.asked[-1][2]["validate_only"] is True


def test_campaigns_are_listed_with_what_waits(run: Any, gateway: FakeGateway):
    """State, stage, and the decisions that people owe."""
    one = a_campaign(rounds=[], stopping=True, held=["line-r1"], reviews=4)
    gateway.answers["GET /v1/campaigns"] = [{"data": [one]}, {"data": []}]

    listed, empty = (run(*words(gateway, "list")).output for _ in range(2))

    for told in ("line", "starter", "running, stopping", "round-2", "1 held, 4 answers"):
        assert told in listed
    assert "`vcllm campaign start RECIPE`" in empty


def test_a_campaign_is_shown_with_its_rounds(run: Any, gateway: FakeGateway):
    """What it is, then a line for every round; details when asked for."""
    gateway.answers["GET /v1/campaigns/line"] = [a_campaign(served="line-r1", held=["line-r2"], reviews=4)]

    short, long = (run(*words(gateway, "show", "line", *more)).output for more in ([], ["--detail"]))

    for told in ("job-1, running", "line-r1", "4 answers wait for a person", "frozen", "promote"):
        assert told in short
    assert "Seconds by phase" not in short
    assert long.startswith(short)
    for told in ("duplicate 14, invalid 9", "no good answer 30", "Seconds by phase", "No figure left its band."):
        assert told in long


@pytest.mark.parametrize(
    ("judge", "told"), [(None, "the starter's rules over the cards"), ("my-judge", "Critic version my-judge")]
)
def test_a_campaign_says_whose_word_the_gate_follows(run: Any, gateway: FakeGateway, judge: str | None, told: str):
    """A judge by its name, else the rules."""
    gateway.answers["GET /v1/campaigns/line"] = [a_campaign(rounds=[a_row(1, judge=judge)])]

    assert told in run(*words(gateway, "show", "line")).output


def test_a_campaign_before_its_first_round_says_so(run: Any, gateway: FakeGateway):
    """And why it failed, where it did; a message is no markup."""
    gateway.answers["GET /v1/campaigns/line"] = [a_campaign(rounds=[], state="failed", error="no [red]room[/nothing]")]

    result = run(*words(gateway, "show", "line"))

    assert result.exit_code == 0
    assert "no [red]room[/nothing]" in result.output
    assert "No round is done yet." in result.output


@pytest.mark.parametrize(
    "given", [["show", "line"], ["list"], ["pause", "line"], ["start", "starter"]], ids=lambda given: given[0]
)
def test_json_is_the_reply_itself(run: Any, gateway: FakeGateway, given: list[str]):
    """For scripts: nothing added, nothing left out."""
    one = a_campaign()
    gateway.answers |= {
        "GET /v1/campaigns/line": [one],
        "GET /v1/campaigns": [{"data": [one]}],
        "POST /v1/campaigns/line/pause": [one],
        "POST /v1/campaigns": [one],
    }

    result = run(*words(gateway, *given, "--json"))

    assert json.loads(result.output) == ({"data": [one]} if given == ["list"] else one)


@pytest.mark.parametrize(
    ("what", "state", "says"),
    [
        ("pause", "pausing", "line is pausing."),
        ("resume", "queued", "line is queued."),
        ("abort", "cancelling", "line is cancelling."),
        ("stop", "running", "the round in progress is its last one; the report follows"),
        ("stop", "queued", "begins no further one, and reports"),
        ("stop", "paused", "resume it, and it ends its rounds and reports"),
        ("stop", "failed", "it has failed; resume it"),
    ],
)
def test_a_campaign_is_steered_by_name(run: Any, gateway: FakeGateway, what: str, state: str, says: str):
    """And what becomes of it is said, since a word to a paused one does nothing yet."""
    gateway.answers[f"POST /v1/campaigns/line/{what}"] = [a_campaign(state=state, stopping=what == "stop")]

    result = run(*words(gateway, what, "line"))

    assert result.exit_code == 0, result.output
    assert says in result.output


def test_the_archive_is_exported(run: Any, gateway: FakeGateway, tmp_path: Path):
    """The same JSON to a file and to the terminal."""
    kept = archive(2).model_dump(mode="json")
    gateway.answers["GET /v1/campaigns/line/archive"] = [kept]
    file = tmp_path / "new" / "archive.json"

    told = run(*words(gateway, "archive", "line"))
    written = run(*words(gateway, "archive", "line", "--output", str(file)))

    assert json.loads(told.output) == json.loads(file.read_text()) == kept
    assert "1 cells after round 2" in written.output


def test_a_watched_campaign_is_followed_to_its_end(run: Any, gateway: FakeGateway):
    """By its job's events, with the table as it grows."""
    gateway.answers["GET /v1/campaigns/line"] = [
        a_campaign(rounds=[]),
        a_campaign(rounds=[]),
        a_campaign(rounds=[a_row(1, num_pairs=4711)]),
    ]
    gateway.answers["GET /v1/jobs/job-1/events"] = [
        frames(
            ("1-0", "stage", {"stage": "round-1", "status": "started"}),
            ("2-0", "stage", {"stage": "round-1", "status": "finished", "seconds": 61.0}),
            ("3-0", "state", {"state": "succeeded"}),
        )
    ]
    gateway.answers["GET /v1/jobs/job-1"] = [{"id": "job-1", "state": "succeeded", "error": None}]

    result = run(*words(gateway, "watch", "line"))

    assert result.exit_code == 0, result.output
    assert "round-1: finished in 1 min 01 s" in result.output
    assert result.output.count("4711") == 1


def test_the_table_is_fetched_when_a_stage_is_over(gateway: FakeGateway):
    """Not with every step of training; and a gateway that is away leaves the table as it was."""
    away = (503, {"error": {"message": "The job store does not answer."}})
    gateway.answers["GET /v1/campaigns/line"] = [a_campaign(), away, a_campaign(rounds=[a_row(1)])]
    board = Board()
    with Api(gateway.url, "k") as api:
        view = RoundsView(api, "line")
        first = view(board)
        for step in range(5):
            board.take(event("progress", stage="sft", step=step, steps=100))
            assert view(board) is first
        board.take(event("stage", stage="sft", status="finished", seconds=1.0))
        while_away, back = view(board), view(board)

    assert while_away is first
    assert back is not first
    assert len(gateway.asked) == 3


def test_a_plain_display_prints_a_table_when_it_changed():
    """A log file has each of them once."""
    tables = iter([None, one := Text("one"), one, one, Text("two")])
    console = Console(record=True, width=100, file=io.StringIO())

    with PlainDisplay(console, table=lambda board: next(tables)) as display:
        for _ in range(5):
            display.show(Board())

    assert console.export_text().split() == ["one", "two"]


# Tables.


def test_the_table_fits_100_columns_at_its_widest():
    """Every share at 100 %, every word whole."""
    rows = [a_row(number, **WIDEST, num_pairs=4711) for number in (1, 2, 9, 10)]
    lines = drawn(rounds_table(rows)).splitlines()

    assert max(map(len, lines)) <= 100
    assert "…" not in drawn(rounds_table(rows))
    assert sum(line.count("100 (92–100)") for line in lines) == 4 * len(WIDEST)
    assert sum("promote" in line for line in lines) == 4


def test_the_details_fit_100_columns_at_their_widest():
    """All phases, long reasons: texts fold, figures never do."""
    steering = Steering(benign_share=0.3, reason="Coverage stalls at 75.0%: explore 0.150 to 0.188. " * 4)
    row = a_row(1, work=work(seconds=dict.fromkeys(PHASES, 1234.5), steering=steering, stop="It was told to stop."))
    text = drawn(*detail_tables([row]))

    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert text.count("1234.5") == len(PHASES)
    assert "It was told to stop." in " ".join(text.split())


def test_rounds_without_their_work_have_no_details():
    """Round 0 was not played; a table of nothing is not shown."""
    assert list(detail_tables([a_row(1, work=None)])) == []
    assert "–" in drawn(rounds_table([a_row(1, work=None)]))


def test_the_round_before_the_first_shows_gaps():
    """It has no attacks of its own, no gate, and no pairs."""
    row = a_row(0, fresh=None, retained=None, gate=None, work=None, frozen=ALL)
    cells = drawn(rounds_table([row])).splitlines()[-2].split("  ")

    assert [cell.strip() for cell in cells if cell.strip()][:3] == ["0", "–", "100 (92–100)"]


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (GateVerdict(passed=True, checks=[]), "promote"),
        (GateVerdict(passed=False, checks=[]), "reject"),
        (GateVerdict(passed=False, checks=[], decision="hold"), "hold"),
    ],
)
def test_a_gate_is_told_by_its_decision(verdict: GateVerdict, told: str):
    """Older verdicts knew two of them."""
    assert told in drawn(rounds_table([a_row(1, gate=verdict)]))


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (Measure(value=0.0449, low=0.02, high=0.081, n=90), "4.5 (2–8)"),
        (Measure(value=0.0996, low=0.05, high=0.17, n=90), "10 (5–17)"),
        (Measure(value=0.334, low=0.27, high=0.4, n=90), "33 (27–40)"),
        (UNMEASURED, "–"),
        (None, "–"),
    ],
)
def test_a_share_has_its_interval(measure: Measure | None, told: str):
    """Small ones with a decimal; what could not be measured is no zero."""
    assert told_share(measure) == told


def test_the_shares_of_a_round_stand_in_their_columns():
    """Each under its own name."""
    shares = {name: Measure(value=0.11 * n, low=0.0, high=1.0, n=9) for n, name in enumerate(WIDEST, start=1)}
    row: CampaignRound = a_row(1, **shares)
    line = next(line for line in drawn(rounds_table([row])).splitlines() if line.strip().startswith("1 "))

    found = [line.index(f"{11 * n} (0–100)") for n in range(1, 6)]
    assert found == sorted(found)


# The manual.


def test_the_manual_names_every_knob_with_its_default():
    """One row for each key of the rounds and of their sections, and none for keys that are no more."""
    text = (Path(__file__).parents[2] / "docs" / "campaigns.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", text[text.index("## Knobs") :], re.MULTILINE)

    assert dict(rows) == dict(knobs(Rounds))
    assert len(rows) == len(set(rows))


def knobs(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Key to default, as the manual writes them; stages of training are described elsewhere."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from knobs(type(default), f"{prefix}{name}.")
        elif not field.is_required():
            yield f"{prefix}{name}", "none" if default is None else json.dumps(default)


def test_a_lineage_is_named_by_content():
    """Another seed, charter or dose is another name; the longest still leaves room for a version's stage."""
    folder = Path(__file__).parents[2] / "recipes"
    recipe = load_recipe(folder, "starter")
    larger = recipe.model_copy(update={"control": False})
    longest = recipe.model_copy(update={"name": "a" * 64})

    name = lineage_name(recipe, 3, "hash")

    assert re.fullmatch(r"starter-s3-[0-9a-f]{8}", name)
    assert lineage_name(recipe, 3, "hash") == name
    others = {lineage_name(recipe, 4, "hash"), lineage_name(recipe, 3, "other"), lineage_name(larger, 3, "hash")}
    assert len(others | {name}) == 4
    assert re.fullmatch(NAME_PATTERN, f"{lineage_name(longest, 2**31 - 1, 'hash')}-attacker-r9")
