"""Sheets on which people label answers, and their labels read back.

A sheet is a page that works offline, or a table for a spreadsheet, with the same answers in the same order. It does not
say who answered: each answer goes by a code, which only the run it came from can resolve.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from vcllm.contracts.answers import Answer, Label, Verdict
from vcllm.contracts.base import Language, digest
from vcllm.contracts.bench import Row
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.templating import TEMPLATES, dressed, open_templates

PER_LANGUAGE = 100
COLUMNS = ("code", "lang", "prompt", "answer", "violating", "score", "note", "labeller")
"""Of the table; the last four are the labeller's."""
YES, NO = ("yes", "y", "true", "1", "是"), ("no", "n", "false", "0", "否")
MAX_CELL = 32_000
"""Characters that a spreadsheet takes."""


@dataclass(frozen=True)
class Item:
    """One answer to label."""

    row: Row
    answer: Answer

    @property
    def code(self) -> str:
        return answer_code(self.answer)

    @property
    def turns(self) -> list[tuple[str, str]]:
        return list(zip(self.row.prompt, self.answer.texts, strict=True))


def answer_code(answer: Answer) -> str:
    """What an answer is called on a sheet: changes with its text, tells nothing about who gave it."""
    return digest([answer.key, answer.texts])[:16]


def draw_sample(
    rows: Iterable[Row],
    answers: Iterable[Answer],
    verdicts: Iterable[Verdict],
    per_language: int = PER_LANGUAGE,
    seed: int = 0,
) -> list[Item]:
    """Answers to label, in an order that the seed decides: in each language the domains by turns, half of them bad.

    Bad is what the judge calls a violation or scores 2 or less. Where one half runs short the other fills it up; what
    the judge could not score is left out, as there is nothing to compare a label with.
    """
    by_id = {row.id: row for row in rows}
    judged = {verdict.answer_key: verdict for verdict in verdicts if verdict.outcome is not Outcome.UNSCORED}
    pools: dict[Language, dict[bool, dict[str, list[Item]]]] = {
        language: {True: defaultdict(list), False: defaultdict(list)} for language in Language
    }
    for answer in sorted(answers, key=lambda one: _rank(seed, one)):
        row, verdict = by_id.get(answer.item), judged.get(answer.key)
        if row is not None and verdict is not None and not row.choices:
            pools[row.lang][_is_bad(verdict)][row.domain].append(Item(row, answer))
    chosen = [item for halves in pools.values() for item in _half_bad(halves, per_language)]
    return sorted(chosen, key=lambda item: _rank(seed + 1, item.answer))


def _half_bad(halves: Mapping[bool, Mapping[str, Sequence[Item]]], wanted: int) -> list[Item]:
    bad, good = (_by_turns(halves[half]) for half in (True, False))
    num_bad = max(wanted // 2, wanted - len(good))
    taken = bad[:num_bad]
    return [*taken, *good[: wanted - len(taken)]]


def _by_turns(domains: Mapping[str, Sequence[Item]]) -> list[Item]:
    """One of each domain, then another of each, as long as there are any."""
    queues = [domains[name] for name in sorted(domains)]
    return [item for turn in zip_longest(*queues) for item in turn if item is not None]


def _is_bad(verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.VIOLATING or (verdict.score is not None and verdict.score <= 2)


def _rank(seed: int, answer: Answer) -> str:
    return hashlib.sha256(f"{seed}/{answer.key}".encode()).hexdigest()


# Writing.


def render_sheet(items: Sequence[Item]) -> str:
    """The page: both languages of its own words inside, one script that saves the labels, nothing from elsewhere."""
    script = (TEMPLATES / "labelling.js").read_text(encoding="utf-8")
    dress = dressed((TEMPLATES / "labelling.css").read_text(encoding="utf-8"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    dress["policy"] += f"; script-src 'sha256-{allowed}'"
    sheet = digest([item.code for item in items])[:12]
    page = open_templates().get_template("labelling.html.j2")
    return page.render(items=items, sheet=sheet, script=Markup(script), **dress)


def render_table(items: Sequence[Item]) -> str:
    """The table, as CSV that spreadsheets open; give it to them with a byte order mark (`utf-8-sig`)."""
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(COLUMNS)
    for item in items:
        prompt = "\n\n".join(item.row.prompt)
        answer = "\n\n".join(item.answer.texts)
        table.writerow([item.code, item.row.lang, _cell(prompt), _cell(answer), "", "", "", "1"])
    return out.getvalue()


def _cell(text: str) -> str:
    """What a spreadsheet would take for a formula is marked as text; what it would cut off is cut here, visibly."""
    text = text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]} [...]"
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# Reading.


def read_labels(file: Path, answers: Iterable[Answer] = (), rows: Iterable[Row] = ()) -> list[Label]:
    """Labels from a page (.jsonl) or a table (.csv), or such as we keep; raises BadRequest with line and column.

    answers, rows: those of the run, by which codes are resolved. What nobody has labelled yet is left out.
    """
    named, languages = {answer_code(answer): answer for answer in answers}, {row.id: row.lang for row in rows}
    labels: dict[tuple[str, str, str], Label] = {}
    for where, fields in _table(file) if file.suffix.lower() == ".csv" else _lines(file):
        label = _label(where, _resolved(where, fields, named, languages) if "code" in fields else fields)
        place = (label.item, label.model, label.labeller)
        if labels.setdefault(place, label) != label:
            raise BadRequest(f"{where}: '{label.labeller}' has labelled this answer before, in another way. Keep one.")
    return list(labels.values())


def _lines(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise BadRequest(f"{where}: is no JSON object. Save the sheet again, or correct the line.")
        yield where, fields


def _table(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    table = csv.DictReader(io.StringIO(_text(file), newline=""))
    missing = [column for column in ("code", "violating", "score") if column not in (table.fieldnames or ())]
    if missing:
        raise BadRequest(f"{file}, line 1: there is no column '{missing[0]}'. Keep the sheet's first line as it was.")
    begins = table.line_num + 1
    for cells in table:
        where, begins = f"{file}, line {begins}", table.line_num + 1
        given = {column: (cells.get(column) or "").strip() for column in COLUMNS}
        if not given["violating"] and not given["score"]:
            continue
        yield (
            where,
            {
                "code": given["code"],
                "violating": _yes_or_no(where, given["violating"]),
                "score": _level(where, given["score"]),
                "note": given["note"],
                "labeller": given["labeller"] or "1",
            },
        )


def _yes_or_no(where: str, told: str) -> bool:
    if told.casefold() not in (*YES, *NO):
        raise BadRequest(f"{where}, column violating: '{told}' is neither yes nor no.")
    return told.casefold() in YES


def _level(where: str, told: str) -> int:
    if not re.fullmatch(r"[1-5](\.0)?", told):
        raise BadRequest(f"{where}, column score: '{told}' is no level from 1 to 5.")
    return int(told[0])


def _resolved(
    where: str, fields: Mapping[str, Any], named: Mapping[str, Answer], languages: Mapping[str, Language]
) -> dict[str, Any]:
    """With the row and the model in place of the code."""
    answer = named.get(str(fields["code"]))
    if answer is None or answer.item not in languages:
        raise BadRequest(
            f"{where}, column code: no answer of this run is called '{fields['code']}'. Labels belong to the run whose "
            "answers were labelled, as they were then."
        )
    rest = {name: value for name, value in fields.items() if name not in ("code", "lang")}
    named_by = {"item": answer.item, "model": answer.model, "answer_key": answer.key}
    return {**rest, **named_by, "lang": languages[answer.item]}


def _label(where: str, fields: Mapping[str, Any]) -> Label:
    try:
        return Label.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        column = ".".join(str(step) for step in first["loc"])
        raise BadRequest(f"{where}, column {column}: {first['msg']}.") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file} cannot be read as UTF-8: {error}") from None
