"""`vcllm data check` reads data as a run would, and its exit status says what a run would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vcllm.charter import load_charter
from vcllm.cli import app
from vcllm.contracts.recipes import EvaluationParams
from vcllm.starter.suite import items_of_run

CHAT = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}


def check(folder: Path, *options: str, rows: list[dict[str, Any]]) -> Result:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CliRunner().invoke(app, ["data", "check", str(file), *options])


def test_sound_data_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Exit status 0, and a table of counts."""
    monkeypatch.chdir(tmp_path)
    result = check(Path(), "--stage", "sft", rows=[CHAT, CHAT])

    assert result.exit_code == 0
    assert "A run would take this data." in result.stdout
    assert "mine.jsonl 2 1 0 0 1 0 0" in " ".join(result.stdout.split())


def test_faults_are_listed_up_to_the_cap(tmp_path: Path):
    """Exit status 1, with line, pointer and reason."""
    result = check(tmp_path, "--max-faults", "1", rows=[{"text": 1}, {"text": 2}])

    assert result.exit_code == 1
    assert "line 1 /text: must be text, is 1" in result.stdout
    assert "line 2" not in result.stdout
    assert "and 1 more" in result.stdout


def test_rows_for_another_stage_fail(tmp_path: Path):
    """The check knows what the data is for."""
    result = check(tmp_path, "--stage", "critic", rows=[CHAT])

    assert result.exit_code == 1
    assert "line 1 /label: is missing" in result.stdout


@pytest.mark.parametrize(("options", "code"), [((), 1), (("--no-contamination",), 0)])
def test_a_question_of_the_evaluation_fails(tmp_path: Path, options: tuple[str, ...], code: int):
    """Unless contamination is not looked for."""
    item = items_of_run(load_charter(), EvaluationParams())[0][0]
    result = check(tmp_path, *options, rows=[{"prompt": item.query, "completion": "No."}])

    assert result.exit_code == code
    assert (f"line 1: quotes evaluation item {item.id}" in result.stdout) == bool(code)


def test_json_carries_the_same_findings(tmp_path: Path):
    """For scripts: one object, the same exit status."""
    result = check(tmp_path, "--json", "--show", "1", "--max-chars", "5", rows=[CHAT, {"text": 3}])
    told = json.loads(result.stdout)

    assert result.exit_code == 1
    assert told["ok"] is False
    assert told["too_long"] == "more than 5 characters"
    fault = {"where": "line 2", "pointer": "/text", "reason": "must be text, is 3", "code": "invalid_value"}
    assert told["sets"][0]["faults"] == [fault]
    assert told["sets"][0]["too_long"] == 1
    assert told["sets"][0]["first_rows"] == [CHAT]


def test_rows_are_shown_as_the_training_sees_them(tmp_path: Path):
    """In canonical form, and what looks like markup is left alone."""
    result = check(tmp_path, "--show", "1", rows=[{"prompt": "[bold]Why?", "completion": "Because."}, CHAT])
    shown = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]

    assert [row["messages"][0]["content"] for row in shown] == ["[bold]Why?"]


def test_one_missing_file_does_not_hide_what_is_wrong_with_the_others(tmp_path: Path):
    """All of them are checked."""
    result = check(tmp_path, str(tmp_path / "nowhere.jsonl"), rows=[{"text": 3}])

    assert result.exit_code == 1
    assert "There is no data at" in result.stdout
    assert "line 1 /text: must be text, is 3" in result.stdout


def test_a_recipe_brings_its_rule_on_contamination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the recipe drops or allows does not fail the check."""
    optim = "optim = { learning_rate = 1e-3 }\n"
    stages = "".join(f"[{name}]\n{optim}" for name in ("sft", "critic", "attacker"))
    rounds = "".join(f"[rounds.{name}]\n{optim}" for name in ("preference", "attacker"))
    (tmp_path / "tiny.toml").write_text(
        f'name = "tiny"\ncontamination = "drop"\n[base]\nmodel = "x"\n{stages}[rounds]\n{rounds}'
    )
    monkeypatch.setenv("VCLLM_RECIPES", str(tmp_path))
    item = items_of_run(load_charter(), EvaluationParams())[0][0]
    rows = [CHAT, {"prompt": item.query, "completion": "No."}]

    assert check(tmp_path, "--recipe", "tiny", rows=rows).exit_code == 0
    assert check(tmp_path, rows=rows).exit_code == 1
