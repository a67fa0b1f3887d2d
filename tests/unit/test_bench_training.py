"""The training benchmark's arithmetic: which way a ratio points, what a missing peer leaves, what a table shows."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest

from benchmarks import rows, training
from benchmarks.budget import Budget
from benchmarks.training_task import Task, Variant

SHAPE = {"name", "unit", "ours", "peer", "peer_name", "ratio", "runs", "ratio_min", "ratio_max"}


@pytest.fixture
def pairs_file(tmp_path):
    """Two pairs of 10 + 4 + 6 and 20 + 8 + 2 tokens."""
    file = tmp_path / "preference.jsonl"
    lengths = [{"prompt": 10, "chosen": 4, "rejected": 6}, {"prompt": 20, "chosen": 8, "rejected": 2}]
    file.write_text("".join(json.dumps({"chosen": "a", "rejected": "b", "lengths": each}) + "\n" for each in lengths))
    return file


def preference_task(file, **fields):
    return Task(
        kind="preference", model=file.parent, rows=file, num_rows=2, rows_per_step=1, learning_rate=1e-3, **fields
    )


def test_more_tokens_per_second_are_better():
    """Ratios are taken within pairs, then their median: not the ratio of the medians."""
    row = rows.paired_row("SFT", "tokens/s", [200, 300, 100], [100, 100, 100], "TRL")

    assert set(row) == SHAPE
    assert (row["ours"], row["peer"], row["runs"]) == (200, 100, 3)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (2.0, 1.0, 3.0)


def test_less_memory_is_better():
    """A ratio above 1 is better for us whatever is measured."""
    row = rows.paired_row("memory", "bytes", [50, 50], [100, 200], "TRL", "less")

    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (3.0, 2.0, 4.0)


def test_a_missing_peer_is_a_row_with_its_reason():
    """Never a guess."""
    bench = training.Bench(argparse.Namespace(quick=True), Budget(None))
    bench.missing = "not installed"
    turns = {None: [training.Measured(tokens=100, seconds=2.0, peak_bytes=1, losses=[])]}

    (row,) = training.rows_of(bench, "SFT 4M", "tokens/s", "sft", turns, lambda one: one.rate)

    assert set(row) == SHAPE | {"reason"}
    assert (row["ours"], row["peer"], row["ratio"], row["reason"]) == (50.0, None, None, "not installed")
    assert "not installed" in rows.table([row])


def test_results_say_where_and_when(tmp_path, monkeypatch):
    """Machine, commit and date beside the rows; a second run replaces its own rows and keeps the others."""
    monkeypatch.setattr(rows, "machine", lambda: "a machine")
    monkeypatch.setattr(rows, "commit", lambda: "a commit")
    file = tmp_path / "results" / "training.json"
    first = [rows.paired_row(name, "tokens/s", [2], [1], "TRL") for name in ("a", "b")]
    rows.write_results(file, first, curves=[{"steps": "1–10", "ours": 1.0}])

    rows.write_results(file, [rows.paired_row("b", "tokens/s", [3], [1], "TRL")])

    written = json.loads(file.read_text())
    assert {"machine", "commit", "date", "rows", "curves"} == set(written)
    assert {row["name"]: row["ratio"] for row in written["rows"]} == {"a": 2.0, "b": 3.0}


def test_rows_of_another_commit_are_dropped(tmp_path, monkeypatch):
    """Figures in one file belong to one commit."""
    monkeypatch.setattr(rows, "machine", lambda: "a machine")
    file = tmp_path / "training.json"
    for commit, name in (("one", "a"), ("two", "b")):
        monkeypatch.setattr(rows, "commit", lambda commit=commit: commit)
        rows.write_results(file, [rows.paired_row(name, "tokens/s", [2], [1], "TRL")])

    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == ["b"]


def test_a_table_shows_the_ratio_with_its_range():
    """Bytes are shown as MiB."""
    shown = rows.table([rows.paired_row("peak", "bytes", [2**30], [2**31], "TRL", "less")])

    assert shown.splitlines()[-1] == "| peak | MiB | 1,024 | 2,048 | TRL | **2.00** (2.00–2.00) | 1 |"


def test_only_what_is_between_the_markers_changes():
    """A document without markers is refused, not appended to."""
    document = "before\n<!-- bench:training -->\nold\n<!-- /bench:training -->\nafter\n"

    filled = rows.fill(document, "training", r"new \1")

    assert filled == "before\n<!-- bench:training -->\nnew \\1\n<!-- /bench:training -->\nafter\n"
    assert rows.fill(rows.DOCUMENT.read_text(encoding="utf-8"), "training", "x")
    with pytest.raises(ValueError, match="bench:training"):
        rows.fill("nothing here", "training", "new")


def test_a_prompt_counts_once_for_each_answer(pairs_file):
    """On both sides, so that reading it once shows as speed; laid out, it is there once."""
    task = preference_task(pairs_file, epochs=2)

    assert task.laid_out_tokens == 2 * (20 + 30)
    assert task.tokens == 2 * (30 + 50)


def test_a_task_survives_its_journey(pairs_file):
    """The peer's process reads what was written."""
    task = preference_task(pairs_file, variant=Variant("packing", packing="flat", tuned=True))

    assert Task.from_json(task.to_json()) == task


def test_our_step_holds_the_tokens_of_the_peer_s_rows(pairs_file):
    """On average; a constant learning rate, and no supervised term that TRL's DPO has not."""
    task = dataclasses.replace(preference_task(pairs_file, epochs=2), rows_per_step=2)

    stage = training.order(task).stage

    assert (stage.stage, stage.sft_weight) == ("preference", 0.0)
    assert (stage.optim.batch_tokens, stage.optim.schedule, stage.optim.epochs) == (50, "constant", 2)


def test_first_steps_of_sft_are_not_timed(pairs_file):
    """A preference run is timed whole, its reference pass included."""
    steps = [{"tokens": 10, "seconds": 5.0, "loss": 1.0}] * 2 + [{"tokens": 10, "seconds": 1.0, "loss": 0.5}] * 3
    task = preference_task(pairs_file)

    sft = training.measured(dataclasses.replace(task, kind="sft"), steps, 0.0, 1, None)
    whole = training.measured(task, steps, 2.0, 1, None)

    assert (sft.tokens, sft.seconds, len(sft.losses)) == (30, 3.0, 5)
    assert (whole.tokens, whole.seconds) == (80, 15.0)
