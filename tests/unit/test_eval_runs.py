"""The folder of a run: what was asked stays what it was, and a report is made from nothing else."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests import bench_world as world
from vcllm.charter import load_charter
from vcllm.contracts.answers import Answer, AskedModel, Decoding
from vcllm.contracts.figures import BenchReport
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.assemble import assemble, wanted_pairs
from vcllm.evaluation.files import Appender
from vcllm.evaluation.generate import generate
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.stage import cases_of, judge_answers, judge_pairs, mirror_cases
from vcllm.evaluation.runs import RunFolder
from vcllm.evaluation.suites import Suite

CHARTER = load_charter()
SUITE = Suite("known", "1", tuple(world.rows(1)))
MODELS = {"base": world.always_agrees, "fair": world.even_handed}


def asked(name: str, **how: object) -> AskedModel:
    return AskedModel(name=name, url="http://127.0.0.1:9", served=name, decoding=Decoding.model_validate(how))


async def answered(folder: RunFolder, *, judged: bool = True) -> None:
    """Both models on all rows, and the scripted judge on their answers."""
    folder.begin(SUITE, CHARTER)
    for name, model in MODELS.items():
        folder.note(asked(name))
        async with world.model_endpoint(model) as endpoint:
            await generate(
                folder.rows(), endpoint, folder.answers_file, model=name, decoding=Decoding(), charter=CHARTER
            )
    if judged:
        async with world.judge_endpoint() as endpoint:
            judge, cases = ModelJudge(endpoint, CHARTER, "scripted"), cases_of(folder.rows(), folder.answers())
            await judge_answers(cases, judge, folder.verdicts_file)
            await judge_pairs(mirror_cases(cases), judge, folder.pairs_file)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_report_is_made_of_the_lines_alone(folder: RunFolder):
    """Figures of both models in the order in which they were asked, and how they differ."""
    asyncio.run(answered(folder))

    report = assemble(folder, CHARTER, ())

    assert [model.model for model in report.models] == ["base", "fair"]
    assert [model.attack_success.value for model in report.models] == [1, 0]
    assert {(one.before, one.after) for one in report.comparisons} == {("base", "fair")}
    assert report.num_rows == len(SUITE.rows) == len(report.cases)
    assert not report.judges[0].validated
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_a_report_of_half_a_run_is_refused(folder: RunFolder):
    """It says what is missing, and which command brings it."""
    asyncio.run(answered(folder, judged=False))
    with pytest.raises(BadRequest, match="Nobody has judged"):
        assemble(folder, CHARTER, ())
    folder.note(asked("third"))

    with pytest.raises(BadRequest, match=rf"lacks answers: {len(SUITE.rows)} of 'third'"):
        assemble(folder, CHARTER, ())


def test_a_judge_that_was_stopped_half_way_is_no_report(folder: RunFolder):
    """Missing verdicts are told, not left out of the figures."""
    asyncio.run(answered(folder))
    lines = folder.verdicts_file.read_text().splitlines(keepends=True)
    folder.verdicts_file.write_text("".join(lines[:-3]))

    with pytest.raises(BadRequest, match=r"'scripted' has not judged 3 of \d+ answers"):
        assemble(folder, CHARTER, ())


def test_an_unknown_judge_is_named_beside_those_there_are(folder: RunFolder):
    """For whoever mistypes it."""
    asyncio.run(answered(folder))

    with pytest.raises(BadRequest, match=r"no verdicts of 'other'.*some of: scripted"):
        assemble(folder, CHARTER, (), first="other")


def test_a_row_that_has_changed_its_words_is_refused(folder: RunFolder):
    """Answers to the old words must not be shown beside the new ones."""
    folder.begin(SUITE, CHARTER)
    changed = SUITE.rows[0].model_copy(update={"prompt": ["something else"]})

    with pytest.raises(BadRequest, match="in other words, of another version"):
        folder.begin(Suite("known", "2", (changed,)), CHARTER)


def test_another_charter_is_refused(folder: RunFolder):
    """A run is judged by one charter."""
    folder.begin(SUITE, CHARTER)
    text = json.loads((folder.folder / "run.json").read_text())
    (folder.folder / "run.json").write_text(json.dumps(text | {"charter_hash": "0" * 64}))

    with pytest.raises(BadRequest, match="another charter"):
        folder.begin(SUITE, CHARTER)


def test_beginning_again_changes_nothing(folder: RunFolder):
    """Rows, suites and models are noted once."""
    folder.begin(SUITE, CHARTER)
    folder.note(asked("base"))
    before = {file.name: file.read_bytes() for file in folder.folder.iterdir()}

    folder.begin(SUITE, CHARTER)
    folder.note(asked("base"))

    assert {file.name: file.read_bytes() for file in folder.folder.iterdir()} == before


def test_a_folder_without_a_run_says_how_to_begin_one(folder: RunFolder):
    """Instead of a traceback."""
    with pytest.raises(BadRequest, match="`vcllm eval generate` begins one"):
        folder.record()


def test_training_is_held_against_the_prompt_as_well():
    """Every model against the first, and the last against the charter as a prompt."""
    models = [asked("base"), asked("base+charter", charter_prompt=True), asked("sft"), asked("current")]

    assert wanted_pairs(models) == [
        ("base", "base+charter"),
        ("base", "sft"),
        ("base", "current"),
        ("base+charter", "current"),
    ]


def test_what_was_said_of_a_refusal_is_not_said_of_the_answer_that_came_later(folder: RunFolder):
    """The same question, asked again and now answered: it owes a verdict."""
    asyncio.run(answered(folder))
    answer = folder.answers()[0]
    later = answer.model_copy(update={"texts": ["now I can"], "created": datetime.now(UTC)})
    with Appender(folder.answers_file, Answer) as answers:
        answers.append(later, again=True)

    with pytest.raises(BadRequest, match=r"'scripted' has not judged 1 of \d+ answers"):
        assemble(folder, CHARTER, ())
