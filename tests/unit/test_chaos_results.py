"""What the kill matrix keeps between runs, what it shows, and when it takes a phase for begun or over."""

from __future__ import annotations

import json

import pytest

from benchmarks import chaos
from benchmarks.chaos_invariants import Findings
from benchmarks.chaos_plan import Cell
from benchmarks.chaos_run import Story, Strike
from vcllm.contracts.jobs import Event

CELL = Cell("actor", "playing", "SIGKILL")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row(ok: bool, detail: str = "", cell: Cell = CELL) -> dict:
    return {"service": cell.service, "phase": cell.phase, "signal": cell.signal, "ok": ok, "detail": detail}


def test_a_run_that_was_carried_out_is_kept_for_these_very_cells():
    chaos.keep("run-0-00", (CELL,), [row(True)])

    assert chaos.is_kept("run-0-00", (CELL,))
    assert not chaos.is_kept("run-0-00", (CELL, CELL))
    assert not chaos.is_kept("run-0-01", (CELL,))


def test_what_another_commit_came_to_is_not_counted():
    chaos.keep("run-0-00", (CELL,), [row(True)])
    file = chaos.KEPT / "run-0-00.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"commit": "before"}))

    assert not chaos.is_kept("run-0-00", (CELL,))
    assert chaos.kept_rows() == []


def test_the_results_say_which_cells_are_missing(folder):
    """The format of every results file: machine, commit, date, rows."""
    written = chaos.write(folder / "chaos.json", [row(True)])

    assert written == json.loads((folder / "chaos.json").read_text())
    assert {"machine", "commit", "date", "rows", "missing"} == written.keys()
    assert len(written["missing"]) == 8 * 10 * 2 + 5 * 2 + 2 - 1
    assert str(CELL) not in written["missing"]


def test_the_table_has_a_mark_for_every_cell_and_tells_every_fault():
    text = chaos.table([row(True), row(False, "a pair was lost", Cell("redis", "commit", "SIGTERM"))])

    assert "| actor | SIGKILL | ok | – |" in text
    assert "| redis | SIGTERM | – | **no** |" in text
    assert "2 cells, 1 with a fault." in text
    assert "- redis, commit, SIGTERM: a pair was lost" in text


def test_what_is_wrong_after_a_run_counts_against_each_of_its_kills():
    wrong = Findings({"no_approved_pair_lost": ["pair a was lost"]})

    assert Strike(CELL, seen=["gone after 0.1 s"]).row(Findings()) == row(True, "gone after 0.1 s")
    assert Strike(CELL).row(wrong) == row(False, "after the run, no_approved_pair_lost: pair a was lost (1 in all)")
    assert not Strike(CELL, faults=["it was not back after 60 s"]).row(Findings())["ok"]


def told(type_: str, **data: object) -> Event:
    return Event(id="1-0", type=type_, time=1.0, data=dict(data))


@pytest.mark.parametrize(
    ("phase", "begins", "ends"),
    [
        ("queued", [], [told("stage", stage="pretrain", status="started")]),
        ("playing", [told("round", round=1, phase="attack")], [told("round", round=1, phase="pair")]),
        (
            "report",
            [told("stage", stage="report", status="started")],
            [told("stage", stage="report", status="finished")],
        ),
    ],
)
def test_a_phase_begins_and_ends_with_what_the_job_tells(folder, phase, begins, ends):
    story = Story(folder)
    for event in begins:
        story.hear(event)
    at_its_begin = story.has_reached(phase), story.is_past(phase)
    for event in ends:
        story.hear(event)

    assert at_its_begin == (True, False)
    assert story.is_past(phase)


def test_a_version_is_being_trained_from_its_first_word_to_its_commit(folder):
    story = Story(folder)
    before = story.has_reached("training")
    story.hear(told("progress", stage="round-2", step=1))
    during = story.has_reached("training"), story.is_past("training")
    version = folder / "actor" / "micro-s0-r2"
    version.mkdir(parents=True)
    (version / "manifest.json").touch()

    assert (before, during) == (False, (True, False))
    assert story.is_past("training")


def test_a_commit_lasts_until_the_gate_has_spoken(folder):
    story = Story(folder)
    before = story.has_reached("commit")
    version = folder / "actor" / "micro-s0-r3"
    version.mkdir(parents=True)
    (version / "manifest.json").touch()
    during = story.has_reached("commit"), story.is_past("commit")
    story.hear(told("stage", stage="round-3", status="finished"))

    assert (before, during) == (False, (True, False))
    assert story.is_past("commit")
