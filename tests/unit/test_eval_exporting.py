"""A suite in the form of other tools: nothing lost silently, the canary everywhere, the judge always named."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.export_world import CANARY, row, suite
from vcllm.charter import load_charter
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.exporting import FORMATS, Exported, export_suite
from vcllm.evaluation.exporting.promptfoo import raw
from vcllm.evaluation.files import read_lines
from vcllm.evaluation.judging.wording import Brief

CHARTER = load_charter()
LINES = {
    "inspect": ["rows.jsonl"],
    "lm-eval": ["vc_bench/rows_zh.jsonl", "vc_bench/rows_en.jsonl"],
    "promptfoo": ["tests.jsonl"],
    "opencompass": ["vc_bench_zh.jsonl", "vc_bench_en.jsonl"],
}
LEFT_OUT = {"inspect": 0, "lm-eval": 4, "promptfoo": 6, "opencompass": 6}
"""Of the 26 rows: four of several turns, two of choices."""


def export(format: str, folder: Path, *rows: Row) -> Exported:
    return export_suite(format, suite(list(rows) or None), folder, CHARTER)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def loaded(file: Path, **known: Any) -> ModuleType:
    """A program of an export, run with what it is given instead of what it imports."""
    module = ModuleType(file.stem)
    module.__dict__.update(known, __file__=str(file))
    exec(compile(file.read_text(encoding="utf-8"), file, "exec"), module.__dict__)
    return module


# All formats.


def test_every_format_has_its_lines(tmp_path: Path):
    """The tables of this file know all of them."""
    assert set(LINES) == set(LEFT_OUT) == set(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_every_row_is_written_or_named_as_left_out(tmp_path: Path, format: str):
    """With a reason; none is lost."""
    exported = export(format, tmp_path)
    written = [line for name in LINES[format] for line in lines(tmp_path, name)]
    left_out = [id for ids in exported.left_out.values() for id in ids]

    assert len(written) == exported.num_rows == 26 - LEFT_OUT[format]
    assert len(left_out) == LEFT_OUT[format]
    assert all(sentence in (tmp_path / "README.md").read_text() for sentence in exported.sentences())


@pytest.mark.parametrize("format", FORMATS)
def test_lines_carry_the_canary_and_the_version_of_their_set(tmp_path: Path, format: str):
    """So that a leak is found wherever the lines end up."""
    export(format, tmp_path)
    texts = [json.dumps(line, ensure_ascii=False) for name in LINES[format] for line in lines(tmp_path, name)]
    stamp = json.loads((tmp_path / "suite.json").read_text())

    assert all(CANARY in text and "vc-bench@9.9" in text for text in texts)
    assert (stamp["version"], stamp["canary"], stamp["suite"]) == ("9.9", CANARY, "tiny")
    assert CANARY in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_the_programs_are_sound_python(tmp_path: Path, format: str):
    """Nothing undefined or unused in them, though their imports are another tool's."""
    programs = [file for file in export(format, tmp_path).files if file.suffix == ".py"]
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E4,E7,E9,F,B"]

    for program in programs:
        ast.parse(program.read_text(encoding="utf-8"))
    if programs:
        assert subprocess.run([*ruff, *map(str, programs)], capture_output=True, text=True).stdout.startswith("All")


@pytest.mark.parametrize("format", FORMATS)
def test_the_readme_leaves_no_gap_unfilled(tmp_path: Path, format: str):
    """It says how to run the export, and no placeholder is left in it."""
    export(format, tmp_path)
    readme = (tmp_path / "README.md").read_text()

    assert re.search(r"^    (inspect eval|lm_eval|npx promptfoo|PYTHONPATH=. opencompass)", readme, re.MULTILINE)
    assert not re.search(r"\$\w", readme)


def test_an_unknown_format_and_a_suite_that_fits_none_are_refused(tmp_path: Path):
    """Nothing is written."""
    with pytest.raises(BadRequest, match="no export to 'helm'. Use one of inspect, lm-eval, promptfoo, opencompass"):
        export("helm", tmp_path)
    with pytest.raises(BadRequest, match="can be given none of these rows: because the tool asks one turn only"):
        export("lm-eval", tmp_path, row(1, "zh", "pressure", 2, 2, 2, 2))

    assert list(tmp_path.iterdir()) == []


# Each format.


def test_inspect_rows_are_ours_again_when_read(tmp_path: Path):
    """Turns, rubric and sets included."""
    export("inspect", tmp_path)

    assert tuple(read_lines(tmp_path / "rows.jsonl", Row)) == suite().rows


def test_lm_eval_tasks_cover_the_languages_there_are(tmp_path: Path):
    """A group over one task for each; `until` is empty, or answers would end at their first blank line."""
    export("lm-eval", tmp_path, row(1, "en", "direct", 2))
    files = sorted(file.name for file in (tmp_path / "vc_bench").iterdir())
    group = yaml.safe_load((tmp_path / "vc_bench" / "vc_bench.yaml").read_text())
    task = yaml.safe_load((tmp_path / "vc_bench" / "vc_bench_en.yaml").read_text().replace("!function", ""))

    assert files == ["rows_en.jsonl", "utils.py", "vc_bench.yaml", "vc_bench_en.yaml"]
    assert group["task"] == ["vc_bench_en"] and group["metadata"]["version"] == "9.9"
    assert task["generation_kwargs"]["until"] == [] and task["custom_dataset"] == "utils.rows_en"


@pytest.mark.parametrize(
    ("lang", "text", "seen"),
    [
        ("zh", "这是中文。", (1.0, 1.0)),
        ("zh", "This is English.", (1.0, 0.0)),
        ("en", "  ", (0.0, 0.0)),
        ("en", "42", (1.0, 1.0)),
    ],
)
def test_lm_eval_sees_emptiness_and_language_without_a_judge(tmp_path: Path, lang: str, text: str, seen: tuple):
    """And nothing of values."""
    export("lm-eval", tmp_path)
    source = (tmp_path / "vc_bench" / "utils.py").read_text().replace("import datasets\n", "")
    (tmp_path / "vc_bench" / "utils.py").write_text(source)
    utils = loaded(tmp_path / "vc_bench" / "utils.py")

    found = utils.seen_without_a_judge({"lang": lang, "choices": []}, [text])

    assert (found["answered"], found["in_language"]) == seen


def test_lm_eval_asks_choices_as_we_do(tmp_path: Path):
    """Options are listed and the letter is asked for; the row itself stays as it is."""
    export("lm-eval", tmp_path)
    doc = next(doc for doc in lines(tmp_path, "vc_bench/rows_en.jsonl") if doc["choices"])

    assert doc["text"].endswith("A. one\nB. two\nC. three\nReply with the letter of the correct option only.")
    assert "A. one" not in doc["prompt"][0]


def test_promptfoo_grades_each_row_in_its_own_language(tmp_path: Path):
    """The grader is told to reason in Chinese about Chinese rows and in English about English ones."""
    export("promptfoo", tmp_path)
    prompts = {test["metadata"]["lang"]: test["options"]["rubricPrompt"] for test in lines(tmp_path, "tests.jsonl")}
    told = {lang: (tmp_path / name.removeprefix("file://")).read_text() for lang, name in prompts.items()}

    assert "理由必须用中文写" in told["zh"] and "Write the reason in English" in told["en"]
    assert not re.search(r"[\u4e00-\u9fff]", told["en"])
    assert all(json.loads(text)[1]["content"].count("{{ output }}") == 1 for text in told.values())


def test_promptfoo_graders_see_the_rubric_of_their_row(tmp_path: Path):
    """All that our own judge is briefed with."""
    export("promptfoo", tmp_path)
    first, test = suite().rows[0], lines(tmp_path, "tests.jsonl")[0]

    assert Brief(first, CHARTER).text() in test["assert"][0]["value"]


def test_promptfoo_does_not_fill_in_braces_of_a_question():
    """A prompt about templates stays as it is."""
    assert raw("What does {{ name }} mean?") == "{% raw %}What does {{ name }} mean?{% endraw %}"
    assert raw("Nothing {here} to fill.") == "Nothing {here} to fill."


def test_promptfoo_names_no_grader_of_its_own(tmp_path: Path):
    """Who grades comes from the environment alone."""
    export("promptfoo", tmp_path)
    config = yaml.safe_load((tmp_path / "promptfooconfig.yaml").read_text())

    assert config["defaultTest"]["options"]["provider"]["id"] == "openai:chat:{{env.VC_JUDGE}}"


def test_opencompass_lines_have_the_form_its_reader_checks(tmp_path: Path):
    """A list of messages and a list with one reference: what the judge is told."""
    export("opencompass", tmp_path)
    found = lines(tmp_path, "vc_bench_zh.jsonl")

    assert all([message["role"] for message in line["question"]] == ["user"] for line in found)
    assert all(len(line["answer"]) == 1 and "参考立场：" in line["answer"][0] for line in found)


def test_opencompass_is_told_its_judge_by_variables_without_a_default(tmp_path: Path):
    """And the wording in both languages stands in the configuration."""
    export("opencompass", tmp_path)
    config = loaded(tmp_path / "eval_vc_bench.py").__dict__

    assert (config["judge"]["path"], config["judge"]["openai_api_base"]) == ("{{$VC_JUDGE:}}", "{{$VC_JUDGE_URL:}}")
    assert [dataset["abbr"] for dataset in config["datasets"]] == ["vc_bench_zh", "vc_bench_en"]
    for prompt in config["judge_prompts"].values():
        assert prompt.count("{answer}") == prompt.count("{prediction}") == 1


def test_opencompass_reads_the_level_that_ends_a_judgement(tmp_path: Path):
    """Not a digit of the reason; what cannot be read is counted apart and never as a level."""
    export("opencompass", tmp_path)
    five_levels = loaded(tmp_path / "vc_opencompass.py").five_levels
    said = ["第 1 点很好，共 5 点。\n评定：4", "Rating: 2, no.\nRating: 1", "I cannot say.", "Rating: 10", "评定：５"]

    found = five_levels({str(number): {"prediction": text} for number, text in enumerate(said)}, "")

    assert (found["judged"], found["unscored"]) == (2, 3)
    assert (found["score"], found["violations"]) == (25 * 1.5, 50.0)


def test_opencompass_without_a_readable_judgement_has_no_score(tmp_path: Path):
    """Not even zero."""
    export("opencompass", tmp_path)
    found = loaded(tmp_path / "vc_opencompass.py").five_levels({"0": {"prediction": ""}}, "")

    assert "score" not in found and found["unscored"] == 1
