"""What `vcllm eval` asks: the questions for the model that is served, suites by name or file, what a run has asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import bench_world as world
from tests.eval_commands import CHARTER, ROWS, FakeGateway, Run, Scripted, around, sentence
from tests.servers import serve
from vcllm.commands import eval_stages
from vcllm.commands.errors import CommandError
from vcllm.commands.eval_models import Source, trained
from vcllm.contracts.answers import Answer, AskedModel, Decoding
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.assemble import assemble
from vcllm.evaluation.files import read_lines, write_lines
from vcllm.evaluation.runs import RunFolder
from vcllm.evaluation.suites import Suite, load_suite

# What this machine knows of the served model.


def add_version(home: Path, name: str, stage: str, parent: str | None = None, charter: str = CHARTER.hash) -> None:
    """As the trainer commits it: the recipe is that of the stage, the parent's role stands before its name."""
    manifest = Manifest(
        role="actor", name=name, lineage=name.rpartition("-")[0], stage=stage, parent=parent, format="full", files={},
        recipe={"stage": stage}, recipe_hash="0", charter=charter, dataset="0", token=1, job="job-1", created=1.0,
    )  # fmt: skip
    folder = home / "models" / "actor" / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def add_starter(home: Path, charter: str = CHARTER.hash) -> None:
    add_version(home, "x-base", "pretrain", charter=charter)
    add_version(home, "x-sft", "sft", "actor/x-base", charter=charter)


def add_round(home: Path) -> None:
    card = CHARTER.cards[0]
    cell = Cell(subdomain=card.subdomain, tactic="direct", language=Language.EN)
    goal = AttackGoal(cell=cell, kind="attack", card=card.id, goal=0, text=card.claims[0].en)
    file = home / "lineages" / "x" / "rounds" / "round-1" / "attacks.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([Attack(goal=goal, query=f"Is it true that {goal.text}?").model_dump(mode="json")]))


def test_what_begins_with_pretraining_is_a_starter(tmp_path: Path):
    """However many stages later."""
    add_starter(tmp_path)

    found = trained(tmp_path, "x-sft")

    assert found is not None and found.starter
    assert (found.lineage, found.charter) == ("x", CHARTER.hash)


def test_what_begins_with_an_imported_model_is_none(tmp_path: Path):
    """It is asked in free text."""
    add_version(tmp_path, "x-base", "import")
    add_version(tmp_path, "x-sft", "sft", "actor/x-base")

    found = trained(tmp_path, "x-sft")

    assert found is not None and not found.starter


@pytest.mark.parametrize("version", ["x-sft", None, "../etc"])
def test_nothing_is_known_of_what_another_machine_has_trained(tmp_path: Path, version: str | None):
    """Its store is not here."""
    assert trained(tmp_path, version) is None


def test_a_starter_is_asked_its_own_questions_and_those_of_its_rounds(tmp_path: Path, tiny_set: Path):
    """By default, beside the smoke questions, with answers as short as its own."""
    add_starter(tmp_path)
    add_round(tmp_path)
    model = trained(tmp_path, "x-sft")

    suites = eval_stages.chosen_suites([], around(tmp_path / "run", tmp_path), model)

    assert [suite.name for suite in suites] == ["smoke", "starter", "fresh"]
    assert {row.scorer for suite in suites[1:] for row in suite.rows} == {"gold"}
    assert eval_stages.decoding_for(model, None, None, 3) == Decoding(temperature=0.7, max_tokens=64, seed=3)
    assert eval_stages.decoding_for(model, 0.0, 32, 3) == Decoding(temperature=0.0, max_tokens=32, seed=3)


def test_a_starter_without_rounds_is_asked_the_rest(tmp_path: Path, tiny_set: Path):
    """An empty suite is none."""
    add_starter(tmp_path)

    suites = eval_stages.chosen_suites([], around(tmp_path / "run", tmp_path), trained(tmp_path, "x-sft"))

    assert [suite.name for suite in suites] == ["smoke", "starter"]


def test_any_other_model_is_asked_the_smoke_questions(tmp_path: Path, tiny_set: Path):
    """With room for an answer in free text."""
    suites = eval_stages.chosen_suites([], around(tmp_path), None)

    assert [suite.name for suite in suites] == ["smoke"]
    assert eval_stages.decoding_for(None, None, None, 0) == Decoding(temperature=0.0, max_tokens=512, seed=0)


def test_a_run_that_has_begun_keeps_its_questions(tmp_path: Path):
    """Whoever adds a model to it need not say again what was asked."""
    RunFolder(tmp_path).begin(Suite("own", "", tuple(ROWS)), CHARTER)

    assert eval_stages.chosen_suites([], around(tmp_path), None) == []


def test_a_starter_of_another_charter_is_not_asked(tmp_path: Path, tiny_set: Path):
    """Its questions would be about claims that it never learned."""
    add_starter(tmp_path, charter="0" * 64)

    with pytest.raises(CommandError, match="'x' was trained under another charter.*--charter"):
        eval_stages.chosen_suites([], around(tmp_path / "run", tmp_path), trained(tmp_path, "x-sft"))


# Suites.


def test_a_suite_that_is_given_twice_is_one(tmp_path: Path, rows_file: Path):
    """No question is asked twice."""
    suites = eval_stages.chosen_suites([str(rows_file), str(rows_file)], around(tmp_path / "run"), None)

    assert [len(suite.rows) for suite in suites] == [len(ROWS)]


def test_a_last_line_without_its_end_is_a_row(rows_file: Path):
    """People's editors leave it so; it must not be lost silently."""
    rows_file.write_bytes(rows_file.read_bytes().rstrip(b"\n"))

    assert load_suite(str(rows_file)).rows == tuple(ROWS)


def test_choices_beyond_the_letters_are_told(rows_file: Path):
    """Those left over would never be offered."""
    write_lines(rows_file, [ROWS[0].model_copy(update={"choices": [str(number) for number in range(11)]})])

    with pytest.raises(BadRequest, match="has 11 choices; there are letters for 10"):
        load_suite(str(rows_file))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no rows"),
        ("{", "known.jsonl, line 1"),
        ('{"id": "a"}', "known.jsonl, line 1: pair_id: Field required"),
    ],
)
def test_a_file_that_holds_no_rows_is_told(run: Run, rows_file: Path, content: str, told: str):
    """With the line and the field."""
    rows_file.write_text(content)

    assert told in sentence(run("generate", "--suite", rows_file, "--model", "a=http://h#m"))


@pytest.mark.parametrize("name", ["nothing", "."])
def test_an_unknown_suite_is_told_with_those_there_are(run: Run, name: str):
    """The starter's too."""
    told = sentence(run("generate", "--suite", name, "--model", "a=http://h#m"))

    assert told == f"There is no suite '{name}'. Use smoke, core, dev, starter, fresh, or a file of rows."


def test_the_starters_questions_need_no_gateway(run: Run, tmp_path: Path):
    """They are made of the charter; only the attacks of its rounds are on the machine that trained it."""
    server = Scripted(world.model_endpoint(world.even_handed))
    with serve(server.app) as url:
        result = run("generate", "--out", "out", "--suite", "starter", "--model", f"a={url}#m")

    assert result.exit_code == 0, result.output
    assert len(RunFolder(tmp_path / "out").answers()) == server.num == 200


def test_attacks_of_rounds_need_the_machine_that_trained(run: Run):
    """The gateway is somewhere else, or there were no rounds."""
    with serve(FakeGateway("x-base").app) as url:
        result = run("generate", "--suite", "fresh", "--model", "a=http://h#m", "--url", url, "--key", "k")

    assert "needs the rounds of a model that was trained on this machine" in sentence(result)


def test_another_model_has_room_to_answer_the_attacks_of_a_starter(run: Run, tmp_path: Path):
    """Its answers were cut off after the 64 tokens that do for a starter."""
    add_starter(tmp_path / "var")
    add_round(tmp_path / "var")
    with (
        serve(FakeGateway("x-base", "x-sft").app) as url,
        serve(Scripted(world.model_endpoint(world.even_handed)).app) as other,
    ):
        options = ["--model", f"a={other}#m", "--url", url, "--key", "k"]
        result = run("generate", "--out", "out", "--suite", "fresh", *options)

    assert result.exit_code == 0, result.output
    folder = RunFolder(tmp_path / "out")
    assert [asked.decoding.max_tokens for asked in folder.record().models] == [512]
    assert len(folder.answers()) == 1


def test_a_lineage_without_rounds_has_no_fresh_questions(tmp_path: Path):
    """Whoever asks for them is told."""
    add_starter(tmp_path)

    with pytest.raises(CommandError, match="has been through no rounds"):
        eval_stages.chosen_suites(["fresh"], around(tmp_path / "run", tmp_path), trained(tmp_path, "x-sft"))


def test_an_unknown_charter_is_told(run: Run):
    """Before anything is asked."""
    told = sentence(run("generate", "--charter", "nowhere", "--model", "a=http://h#m"))

    assert "nowhere: there is no such charter folder" in told


def test_what_a_model_cannot_take_is_told(run: Run, tmp_path: Path, rows_file: Path):
    """How many, and the server's own words; the run goes on."""
    folder = RunFolder(tmp_path / "out")
    with serve(Scripted(world.model_endpoint(world.even_handed), status=400).app) as url:
        result = run("generate", "--out", "out", "--suite", rows_file, "--model", f"a={url}#m")

    assert result.exit_code == 0
    told = f"a would not take {len(ROWS)} of {len(ROWS)} questions; they count as unscored. The first: {ROWS[0].id}: "
    assert told in result.output and "not you" in result.output
    assert all(answer.is_missing for answer in read_lines(folder.answers_file, Answer))


# A run's folder.


def test_answers_of_one_model_are_never_shown_as_those_of_another(folder: RunFolder):
    """A second run after more training found the name `current` answered, and reported the old version as the new."""
    with pytest.raises(BadRequest, match="it was 'base' that answered as 'base', not 'base-2'. Use another folder"):
        folder.note(AskedModel(name="base", url="http://h", served="base-2", decoding=Decoding()))

    folder.note(AskedModel(name="base", url="http://moved", served="base", decoding=Decoding()))


def test_a_mistyped_model_that_never_answered_may_be_corrected(folder: RunFolder):
    """There is nothing that could be taken for the right one's."""
    for served in ("Qwen", "Qwen3"):
        folder.note(AskedModel(name="new", url="http://h", served=served, decoding=Decoding()))

    assert [model.served for model in folder.record().models] == ["base", "fair", "Qwen3"]


def test_a_model_that_is_not_wanted_any_more_can_be_taken_out(run: Run, judged: RunFolder):
    """The sentence says where; the report is then about the others."""
    judged.note(AskedModel(name="gone", url="http://h", served="gone", decoding=Decoding()))
    told = sentence(run("report", "--out", judged.folder))
    record = json.loads((judged.folder / "run.json").read_text())
    record["models"] = [model for model in record["models"] if model["name"] == "fair"]
    (judged.folder / "run.json").write_text(json.dumps(record))

    report = assemble(judged, CHARTER, ())

    assert f"lacks answers: {len(ROWS)} of 'gone'" in told and "taken out of `models` in its run.json" in told
    assert [model.model for model in report.models] == ["fair"]


def test_a_model_that_has_answered_everything_is_not_started(folder: RunFolder):
    """A local one would take minutes to load, for nothing."""
    source = Source("base", "base", folder=Path("nowhere"))

    eval_stages.ask(around(folder.folder), [], [source], Decoding())

    assert len(folder.answers()) == 2 * len(ROWS)
