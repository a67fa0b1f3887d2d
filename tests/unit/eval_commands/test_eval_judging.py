"""By whom `vcllm eval` has answers judged: which judges are taken, and who passes the self-test."""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import bench_world as world
from tests.eval_commands import CHARTER, ROWS, Run, Scripted, around, sentence
from tests.judge_scripts import endpoint, is_lettered, labelled
from tests.servers import serve
from vcllm.commands import eval_stages
from vcllm.contracts.answers import AskedModel, Decoding
from vcllm.evaluation.assemble import assemble
from vcllm.evaluation.bench import load
from vcllm.evaluation.endpoint import Endpoint
from vcllm.evaluation.generate import generate
from vcllm.evaluation.runs import RunFolder
from vcllm.evaluation.suites import Suite
from vcllm.starter.questions import starter_rows

# Judges.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Say who judges: --judge NAME=URL#MODEL"),
        (["--judge", "nobody"], "'nobody' names no judge"),
        (["--judge", "a=http://h#m", "--judge", "a=http://h#n"], "Two judges have the same name"),
        (["--judge", "gold", "--guard", "llamaguard:g=http://h#m"], "A --guard stands behind a judge that scores"),
        (["--judge", "a=http://h#m,mode=aloud"], "mode=aloud is none of logit, reason, written"),
    ],
)
def test_what_names_no_judge_is_told(run: Run, folder: RunFolder, options: list[str], told: str):
    """Before anybody judges."""
    assert told in sentence(run("judge", "--out", folder.folder, *options))
    assert not folder.verdicts_file.exists()


def test_a_mistyped_judge_is_told_before_anybody_is_asked(run: Run, rows_file: Path):
    """Answers may take hours."""
    server = Scripted(world.model_endpoint(world.even_handed))
    with serve(server.app) as url:
        result = run("run", "--suite", rows_file, "--model", f"a={url}#m", "--judge", "nobody")

    assert "'nobody' names no judge" in sentence(result)
    assert server.num == 0


def test_the_gold_judge_judges_the_starters_questions_by_default(run: Run, tmp_path: Path):
    """No gateway is needed; what it cannot read is unscored."""
    folder, gold = RunFolder(tmp_path / "out"), starter_rows(CHARTER.with_first_cards(5), 1)
    folder.begin(Suite("mixed", "", (*gold, ROWS[0])), CHARTER)
    folder.note(AskedModel(name="a", url="http://h", served="a", decoding=Decoding()))
    asyncio.run(_ask(folder, "a"))

    result = run("judge", "--out", folder.folder)

    assert result.exit_code == 0, result.output
    verdicts = folder.verdicts()
    assert {verdict.judge for verdict in verdicts} == {"gold"}
    assert [verdict.item for verdict in verdicts if verdict.failure == "not_covered"] == [ROWS[0].id]


async def _ask(folder: RunFolder, name: str) -> None:
    async with world.model_endpoint(world.even_handed) as server:
        rows = folder.rows()
        await generate(rows, server, folder.answers_file, model=name, decoding=Decoding(), charter=CHARTER)


def test_a_folder_without_answers_is_told(run: Run, tmp_path: Path):
    """Instead of judging nothing."""
    RunFolder(tmp_path / "out").begin(Suite("known", "", tuple(ROWS)), CHARTER)

    result = run("judge", "--out", "out", "--judge", "a=http://h#m")

    assert "There are no answers in out yet. `vcllm eval generate` asks for them." in sentence(result)


def test_a_run_is_judged_by_its_own_charter(run: Run, folder: RunFolder, tmp_path: Path):
    """Another rubric is refused."""
    other = Path(shutil.copytree(Path(load.__file__).parents[2] / "charter" / "data" / "pluralist", tmp_path / "other"))
    text = (other / "charter.yaml").read_text(encoding="utf-8")
    (other / "charter.yaml").write_text(re.sub(r"(?m)^id: .*$", "id: other", text, count=1), encoding="utf-8")

    result = run("judge", "--out", folder.folder, "--charter", other, "--judge", "a=http://h#m")

    assert "was begun under another charter" in sentence(result)


@pytest.mark.parametrize("command", ["judge", "report", "sheet"])
def test_a_folder_without_a_run_says_how_to_begin_one(run: Run, command: str):
    """By default the one below the home."""
    assert sentence(run(command)).endswith("var/eval. `vcllm eval generate` begins one.")


# The self-test.


def longer_is_better(body: dict[str, Any]) -> httpx.Response:
    """A judge that counts letters."""
    material = body["messages"][-1]["content"].split("##")[-3]
    answer = re.split(r"\[(?:The answer under review|要审阅的回答)\]", material)[-1]
    level = min(5, 1 + len(answer) // (7 if re.search("[\u4e00-\u9fff]", answer) else 27))
    return labelled("B" if is_lettered(body) else str(level))


def by_length() -> Endpoint:
    return endpoint(longer_is_better)


def test_a_good_judge_passes_the_self_test(run: Run, tiny_set: Path):
    """Exit status 0, and how often in each language."""
    with serve(Scripted(world.judge_endpoint()).app) as url:
        result = run("self-test", "--judge", f"good={url}#m", "--out", "out")

    assert result.exit_code == 0, result.output
    assert "good passed the self-test: good answers above bad ones in zh 1.00" in result.output


def test_a_judge_of_length_fails_the_self_test(run: Run, tiny_set: Path):
    """Exit status 1, and at which kind of bad answer."""
    with serve(Scripted(by_length()).app) as url:
        result = run("self-test", "--judge", f"long={url}#m", "--out", "out")

    assert result.exit_code == 1
    assert "long failed the self-test" in result.output and "error:" not in result.output
    assert "preachy refusal: 0.00" in result.output


def test_the_self_test_is_about_the_judges_that_are_named(run: Run, tiny_set: Path):
    """One that failed in the same folder before is not held against the next."""
    with ExitStack() as servers:
        bad = servers.enter_context(serve(Scripted(by_length()).app))
        good = servers.enter_context(serve(Scripted(world.judge_endpoint()).app))
        first = run("self-test", "--judge", f"j={bad}#bad", "--out", "out")
        second = run("self-test", "--judge", f"j={good}#good", "--out", "out")
        third = run("self-test", "--judge", f"j={bad}#bad", "--out", "out")

    assert [one.exit_code for one in (first, second, third)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("judges", "told"), [([], "Say which judges take the test"), (["gold"], "'gold' gives no scores by the rubric")]
)
def test_who_cannot_take_the_self_test_is_told(run: Run, judges: list[str], told: str):
    """Rules have nothing to learn from it."""
    assert told in sentence(run("self-test", *(word for judge in judges for word in ("--judge", judge))))


def test_a_passed_self_test_counts_for_the_judge_that_passed_it(judged: RunFolder, tiny_set: Path):
    """Another model under the same name has not passed it."""
    with serve(Scripted(world.judge_endpoint()).app) as url:
        eval_stages.self_test_run(around(judged.folder), [f"scripted={url}#other"])

    report = assemble(judged, CHARTER, load.load_bench().selftest)

    assert report.judges[0].self_test is None and not report.judges[0].validated
