"""SafetyBench: multiple choice in Chinese and English. The test questions and their answers are separate files.

The same id means the same question in both languages; the Chinese subset is numbered on its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.importing.records import KEY, Record, read_records
from vcllm.evaluation.importing.rows import OTHER, Read, choice_row

SUBDOMAINS = {
    "Ethics and Morality": "soc.ethics",
    "Illegal Activities": OTHER,
    "Mental Health": OTHER,
    "Offensiveness": OTHER,
    "Physical Health": OTHER,
    "Privacy and Property": OTHER,
    "Unfairness and Bias": OTHER,
}
NAMED = re.compile(r"(?P<part>dev|test_answers|test)_(?P<which>zh_subset|zh|en)\.json")


def read_safetybench(files: Sequence[Path], origin: str) -> Read:
    """Rows of every file of questions; raises BadRequest when a test question has no answer."""
    answers = {}
    for file in files:
        if (name := _name(file))["part"] == "test_answers":
            answers[name["which"]] = {record.text(KEY): record for record in read_records(file)}
    rows = []
    for file in files:
        name = _name(file)
        if name["part"] == "dev":
            rows += [_row(record, record, "dev", name["which"], origin) for record in read_records(file)]
        elif name["part"] == "test":
            which = name["which"]
            if which not in answers:
                raise BadRequest(
                    f"{file}: its answers are in a file of their own. Give test_answers_{which}.json too; it is in "
                    "opensource_data/ of the set's repository."
                )
            rows += [_row(one, _answer(one, answers[which]), "test", which, origin) for one in read_records(file)]
    if not rows:
        raise BadRequest("These are answers only. Give the file of questions too, such as test_zh.json.")
    return Read(rows)


def _name(file: Path) -> re.Match[str]:
    named = NAMED.fullmatch(file.name)
    if named is None:
        raise BadRequest(
            f"{file}: the name of a SafetyBench file says its language and part, such as dev_zh.json, test_en.json, "
            "test_zh_subset.json or test_answers_en.json. Keep the names."
        )
    return named


def _answer(question: Record, answers: dict[str, Record]) -> Record:
    id = question.text("id")
    if id not in answers:
        raise question.fault(f"the file of answers has none for id '{id}'")
    return answers[id]


def _row(question: Record, solution: Record, part: str, which: str, origin: str) -> Row:
    category, options = question.one_of("category", SUBDOMAINS), question.texts("options")
    subset = "-subset" if which == "zh_subset" else ""
    return choice_row(
        f"safetybench-{part}{subset}-{question.text('id')}",
        Language(which[:2]),
        question.text("question"),
        options,
        solution.index("answer", options),
        origin,
        category,
        subdomain=SUBDOMAINS[category],
    )
