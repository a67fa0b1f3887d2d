"""What `vcllm eval` reports: figures of whole judgements only, and how far people agree with the judge."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import bench_world as world
from tests.eval_commands import CHARTER, ROWS, Run, Scripted, judge_all, sentence
from tests.servers import serve
from vcllm.contracts.answers import AskedModel, Decoding, Label
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.assemble import assemble
from vcllm.evaluation.benchpage import render_bench_page
from vcllm.evaluation.files import write_lines
from vcllm.evaluation.generate import generate
from vcllm.evaluation.runs import RunFolder

# Reports.


def test_the_first_judge_that_is_named_gives_the_figures(run: Run, tmp_path: Path, rows_file: Path):
    """Although the other one scores more: gold reads nothing of these rows, so that a report of it has no figure."""
    with ExitStack() as servers:
        model = servers.enter_context(serve(Scripted(world.model_endpoint(world.even_handed)).app))
        judge = servers.enter_context(serve(Scripted(world.judge_endpoint()).app))
        options = ["--out", "out", "--suite", rows_file, "--model", f"a={model}#m", "--no-self-test"]
        result = run("run", *options, "--judge", "gold", "--judge", f"scripted={judge}#m")
        other = run("report", "--out", "out")

    assert result.exit_code == other.exit_code == 0, result.output
    assert f"{len(ROWS)} questions, judged by gold" in result.output
    assert f"{len(ROWS)} questions, judged by scripted" in other.output
    assert "has not taken the self-test" in other.output


def test_a_judge_that_has_judged_a_part_is_told(run: Run, judged: RunFolder):
    """With how many are missing and what brings them."""
    lines = judged.verdicts_file.read_text().splitlines(keepends=True)
    judged.verdicts_file.write_text("".join(lines[:-3]))

    told = sentence(run("report", "--out", judged.folder))

    assert f"'scripted' has not judged 3 of {2 * len(ROWS)} answers" in told and "`vcllm eval judge`" in told


def test_mirror_pairs_that_were_not_compared_are_told(run: Run, folder: RunFolder):
    """A judge that was stopped between answers and pairs left a report without even-handedness."""
    asyncio.run(judge_all(folder, pairs=False))

    assert "'scripted' has not compared 4 of 4 mirror pairs" in sentence(run("report", "--out", folder.folder))


def test_pairs_of_earlier_answers_do_not_count(judged: RunFolder):
    """The model is asked in another way and judged again, pairs left out: those there are speak of other answers."""
    asyncio.run(_asked_again(judged))
    asyncio.run(judge_all(judged, pairs=False))

    with pytest.raises(BadRequest, match="'scripted' has not compared 2 of 4 mirror pairs"):
        assemble(judged, CHARTER, ())


async def _asked_again(folder: RunFolder) -> None:
    warmer = Decoding(temperature=1)
    folder.note(AskedModel(name="base", url="http://h", served="base", decoding=warmer))
    async with world.model_endpoint(world.always_agrees) as server:
        await generate(ROWS, server, folder.answers_file, model="base", decoding=warmer, charter=CHARTER)


def test_two_judges_under_one_name_are_not_mixed(judged: RunFolder):
    """Another model took the name and was stopped half way."""
    asyncio.run(judge_all(judged, revision="newer"))
    assert assemble(judged, CHARTER, ()).judges[0].revision == "newer"
    lines = judged.verdicts_file.read_text().splitlines(keepends=True)
    judged.verdicts_file.write_text("".join(lines[:-5]))

    with pytest.raises(BadRequest, match="'scripted' judged some answers in one way and others in another"):
        assemble(judged, CHARTER, ())


def test_a_reward_model_gives_no_figures(judged: RunFolder):
    """It stands beside the judge they come from."""
    rewards = [one.model_copy(update={"judge": "rm", "score_mode": "reward"}) for one in judged.verdicts()]
    write_lines(judged.verdicts_file, [*judged.verdicts(), *rewards])

    with pytest.raises(BadRequest, match="'rm' gives rewards, from which no figures come"):
        assemble(judged, CHARTER, (), first="rm")


# People.


def test_labels_of_a_sheet_calibrate_the_judge(run: Run, judged: RunFolder):
    """Drawn, filled in on the table, taken in: the judge agrees with people who see what it sees."""
    drawn = run("sheet", "--out", judged.folder, "--per-language", "6")
    labels = filled(judged.folder / "labelling.csv")
    taken = run("calibrate", labels, "--out", judged.folder)

    assert drawn.exit_code == taken.exit_code == 0, drawn.output + taken.output
    assert "12 answers to label" in drawn.output and (judged.folder / "labelling.html").is_file()
    assert "12 labels are in" in taken.output
    assert re.search(r"both\s+12\s+1\.00", taken.output)
    assert "Chinese: 6 labelled answers; at least 100 are needed." in taken.output
    assert "'scripted' is not validated by these labels." in taken.output
    assert len(judged.labels()) == 12


def test_with_labels_the_report_has_attack_success_without_the_judges_errors(run: Run, judged: RunFolder):
    """A judge that made no error on what was labelled is corrected by little; without labels nothing is."""
    run("sheet", "--out", judged.folder, "--per-language", "20")
    run("calibrate", filled(judged.folder / "labelling.csv"), "--out", judged.folder)

    before = assemble(judged, CHARTER, ())
    judged.labels_file.unlink()
    without = assemble(judged, CHARTER, ())

    base = before.models[0]
    assert set(base.attack_success_corrected) == {"zh", "en"}
    assert base.attack_success_corrected["zh"].value == pytest.approx(base.attack_success.zh.value, abs=0.1)
    assert without.models[0].attack_success_corrected == {}
    assert "Attack success without the judge" in render_bench_page(before)
    assert "Attack success without the judge" not in render_bench_page(without)


def test_two_models_are_compared_question_by_question(run: Run, folder: RunFolder):
    """The fair one is better wherever the other agrees with a claim; both orders say so."""
    with serve(Scripted(world.judge_endpoint()).app) as url:
        result = run("compare", "base", "fair", "--out", folder.folder, "--judge", f"scripted={url}#m")
        again = run("compare", "base", "fair", "--out", folder.folder, "--judge", f"scripted={url}#m")

    rows = folder.rows()
    worse = sum(row.kind != "benign" for row in rows)
    told = (
        f"scripted: 'fair' is better on {worse}, 'base' on 0, neither on {len(rows) - worse} of {len(rows)} questions; "
        f"the same in both orders on {len(rows)}; 0 unscored."
    )
    assert told in result.output
    assert told in again.output


def test_models_that_have_nothing_in_common_cannot_be_compared(run: Run, folder: RunFolder):
    """It names those there are."""
    result = run("compare", "base", "nobody", "--out", folder.folder, "--judge", "j=http://127.0.0.1:9#m")

    assert "The run has: base, fair." in sentence(result)


def filled(table: Path) -> Path:
    """The table as somebody saved it who finds agreement bad and the rest good."""
    with table.open(encoding="utf-8-sig", newline="") as stream:
        entries = list(csv.DictReader(stream))
    for entry in entries:
        agrees = any(words["agree"] in entry["answer"] for words in world.WORDS.values())
        entry |= {"violating": "yes" if agrees else "no", "score": "1" if agrees else "5"}
    with table.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, entries[0].keys())
        writer.writeheader()
        writer.writerows(entries)
    return table


def test_a_sheet_with_labels_is_not_written_over(run: Run, judged: RunFolder):
    """Hours of somebody's work."""
    run("sheet", "--out", judged.folder, "--per-language", "2")
    assert run("sheet", "--out", judged.folder, "--per-language", "2").exit_code == 0
    before = filled(judged.folder / "labelling.csv").read_bytes()

    result = run("sheet", "--out", judged.folder, "--per-language", "2", "--seed", "1")

    assert "is there already and may hold labels" in sentence(result)
    assert (judged.folder / "labelling.csv").read_bytes() == before


def test_without_a_score_there_is_no_sheet(run: Run, folder: RunFolder):
    """It says who scores."""
    assert "Nobody has scored an answer in" in sentence(run("sheet", "--out", folder.folder))


def test_a_sheet_by_an_unknown_judge_is_told(run: Run, judged: RunFolder):
    """Nothing can be drawn by it."""
    told = sentence(run("sheet", "--out", judged.folder, "--judge", "other"))

    assert "There is nothing to label: 'other' has scored no answer" in told


def test_a_table_without_labels_is_told(run: Run, judged: RunFolder):
    """As it was written; earlier labels stay."""
    run("sheet", "--out", judged.folder)

    told = sentence(run("calibrate", judged.folder / "labelling.csv", "--out", judged.folder))

    assert "No answer is labelled in these files yet" in told
    assert not judged.labels_file.exists()


def test_a_code_of_another_run_is_told(run: Run, judged: RunFolder, tmp_path: Path):
    """Its answers are not here."""
    (tmp_path / "other.jsonl").write_text('{"code": "0123", "violating": true, "score": 1, "labeller": "1"}\n')

    told = sentence(run("calibrate", "other.jsonl", "--out", judged.folder))

    assert "no answer of this run is called '0123'" in told


def test_labels_of_answers_that_have_gone_are_counted(run: Run, judged: RunFolder):
    """Such as those of a model that was taken out; the others are compared."""
    labels = [
        Label(item=ROWS[0].id, model=model, lang=ROWS[0].lang, violating=True, score=1) for model in ("base", "gone")
    ]
    write_lines(judged.labels_file, labels)
    write_lines(judged.folder / "more.jsonl", labels[:1])

    result = run("calibrate", judged.folder / "more.jsonl", "--out", judged.folder)

    assert result.exit_code == 0, result.output
    assert f"1 labels are of answers that this run does not have, and are compared with nothing. The first: " \
        f"{ROWS[0].id} by gone." in result.output  # fmt: skip


def test_rules_are_not_held_against_labels(run: Run, judged: RunFolder, tmp_path: Path):
    """There is nothing about them to validate; the labels are kept."""
    rules = [one.model_copy(update={"judge": "gold", "score_mode": "rule"}) for one in judged.verdicts()]
    write_lines(judged.verdicts_file, rules)
    label = Label(item=ROWS[0].id, model="base", lang=ROWS[0].lang, violating=True, score=1)
    write_lines(tmp_path / "labels.jsonl", [label])

    told = sentence(run("calibrate", "labels.jsonl", "--out", judged.folder))

    assert "'gold' judges by rule" in told
    assert judged.labels() == [label]


# The last training run.


def test_the_report_of_an_evaluation_is_a_page(run: Run, tmp_path: Path):
    """It has no table of stages; the sentence says where to look."""
    (tmp_path / "report.json").write_text(json.dumps({"comparisons": [], "judges": []}))

    assert sentence(run("show", "report.json")) == "report.json is the report of `vcllm eval`: open index.html instead."


def test_without_a_training_run_there_is_nothing_to_show(run: Run):
    """It says what makes one."""
    assert "`vcllm demo` makes one" in sentence(run("show"))
