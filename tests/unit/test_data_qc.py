"""`vcllm data qc` names every fault of an evaluation set with its place, and gives no version to a set that has one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.eval_commands import Run, sentence
from tests.tiny_bench import edit, write_bench
from vcllm.cli import app


@pytest.fixture
def qc(tmp_path: Path) -> Run:
    environment = {"COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words: CliRunner().invoke(app, ["data", "qc", *map(str, words)], env=environment)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write_bench(tmp_path / "bench")


def test_a_sound_sub_domain_passes(qc: Run, bench: Path):
    """Exit status 0."""
    result = qc(bench, "--only", "soc.class")

    assert (result.exit_code, result.output.split()) == (0, ["No", "fault."])


def test_a_broken_sub_domain_is_told_with_the_place(qc: Run, bench: Path):
    """One fault, one line, exit status 1."""
    edit(bench / "test" / "soc.class.yaml", principles=["valour"])

    result = qc(bench, "--only", "soc.class")

    assert result.exit_code == 1
    assert "test/soc.class-direct-000: the charter has no principle 'valour'\n1 fault." in result.output


def test_faults_come_as_json_too(qc: Run, bench: Path):
    """For whatever checks sets without looking."""
    edit(bench / "test" / "soc.class.yaml", principles=["valour"])

    result = qc(bench, "--only", "soc.class", "--json")

    told = json.loads(result.output)
    assert (result.exit_code, told["ok"], told["figures"]) == (1, False, {})
    assert [fault["where"] for fault in told["faults"]] == ["test/soc.class-direct-000"]


def test_a_whole_set_is_checked_for_what_is_missing(qc: Run, bench: Path):
    """Two sub-domains of the taxonomy's thirteen are there; the figures are shown all the same."""
    result = qc(bench, "--json")

    told = json.loads(result.output)
    assert result.exit_code == 1
    assert {"where": "test/pol.intl", "what": "0 units of kind 'direct' instead of 8"} in told["faults"]
    assert told["figures"]["test_units"] == 92


def test_a_set_with_faults_gets_no_version(qc: Run, bench: Path):
    """What has a version passed its checks."""
    result = qc(bench, "--release", "2.0")

    assert result.exit_code == 1
    assert json.loads((bench / "release.json").read_text())["version"] == "1.0"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--release", ""], "--release needs a version, such as 1.0."),
        (["--release", "2", "--only", "soc.class"], "--release is for a whole set: leave --only out."),
        (["--only", "soc.nothing"], "The charter has no sub-domain 'soc.nothing'."),
        (["--charter", "nowhere"], "nowhere: there is no such charter folder: create it or correct the path"),
    ],
)
def test_what_cannot_be_checked_is_told(qc: Run, bench: Path, words: list[str], told: str):
    """One sentence."""
    assert sentence(qc(bench, *words)) == told


def test_a_folder_that_is_no_set_is_told(qc: Run, tmp_path: Path):
    """With what should be in it."""
    assert "there is no *.yaml file: restore the set" in sentence(qc(tmp_path))


def test_a_file_that_is_no_yaml_is_told(qc: Run, bench: Path):
    """With the line."""
    (bench / "dev" / "soc.class.yaml").write_text("- id: [\n")

    assert re.search(r"dev/soc\.class\.yaml: line \d.*: correct the YAML there", sentence(qc(bench)))


def test_content_that_was_changed_under_its_version_is_told(qc: Run, bench: Path):
    """Unless a sub-domain is being written."""
    edit(bench / "test" / "soc.class.yaml", difficulty=2)

    assert "the content is not that of version 1.0" in sentence(qc(bench))
    assert qc(bench, "--only", "soc.class").exit_code == 0
