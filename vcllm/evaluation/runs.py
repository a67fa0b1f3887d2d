"""The folder of one evaluation: what was asked of whom, and the lines of its three stages.

`run.json` and `rows.jsonl` say what was asked; `answers.jsonl`, `verdicts.jsonl` and `pairs.jsonl` grow line by line;
`report/` is made from them alone, so that it can be made again at any time and on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from vcllm.charter import LoadedCharter
from vcllm.contracts.answers import (
    Answer,
    AskedModel,
    CheckedTranslation,
    EvalRun,
    Label,
    PairVerdict,
    SuiteRecord,
    Verdict,
    answer_key,
)
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.files import read_lines, write_lines
from vcllm.evaluation.suites import Suite


class RunFolder:
    """One evaluation on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers_file = folder / "answers.jsonl"
        self.verdicts_file = folder / "verdicts.jsonl"
        self.pairs_file = folder / "pairs.jsonl"
        self.selftest_file = folder / "selftest.jsonl"
        self.labels_file = folder / "labels.jsonl"
        self.translations_file = folder / "translations.jsonl"
        self.translated_file = folder / "translated.jsonl"
        """Verdicts on the checked translations."""
        self.report = folder / "report"
        self._run_file = folder / "run.json"
        self._rows_file = folder / "rows.jsonl"

    def record(self) -> EvalRun:
        """BadRequest where there is no run yet, or one that cannot be read."""
        try:
            return EvalRun.model_validate_json(self._run_file.read_bytes())
        except FileNotFoundError:
            raise BadRequest(f"There is no evaluation in {self.folder}. `vcllm eval generate` begins one.") from None
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"]
            raise BadRequest(f"{self._run_file} cannot be read ({fault}). Restore it or use another folder.") from None

    def begin(self, suite: Suite, charter: LoadedCharter) -> EvalRun:
        """Note a suite; rows that are there already stay. BadRequest for another charter or another row by an old id.

        Safe to repeat, and to be killed at any moment.
        """
        return self.begin_all([suite], charter)

    def begin_all(self, suites: Sequence[Suite], charter: LoadedCharter) -> EvalRun:
        """As `begin`, for several: all of them are noted, or none."""
        run = self.under(charter) if self.is_begun else _new_run(charter)
        rows = {row.id: row for row in self.rows()}
        for row in (row for suite in suites for row in suite.rows):
            if rows.setdefault(row.id, row) != row:
                raise BadRequest(
                    f"{self.folder} already asked '{row.id}' in other words, of another version of its set. "
                    "Use another folder."
                )
        noted = dict.fromkeys([*run.suites, *(_recorded(suite) for suite in suites)])
        run = run.model_copy(update={"suites": list(noted)})
        write_lines(self._rows_file, rows.values())
        self._write(run)
        return run

    @property
    def is_begun(self) -> bool:
        return self._run_file.exists()

    def under(self, charter: LoadedCharter) -> EvalRun:
        """The record of a run under this charter; BadRequest for a run under another one."""
        run = self.record()
        if run.charter_hash != charter.hash:
            raise BadRequest(
                f"{self.folder} was begun under another charter, or another state of '{run.charter}'. "
                "Use another folder, or the charter as it was."
            )
        return run

    def note(self, model: AskedModel) -> None:
        """Note who is about to be asked; the same name with another way of asking takes the old one's place.

        BadRequest where another model has answered by that name: its answers would be taken for the new one's.
        """
        run = self.record()
        models = {asked.name: asked for asked in run.models}
        old = models.get(model.name, model)
        if old.served != model.served and self._has_answered(model.name):
            raise BadRequest(
                f"In {self.folder} it was '{old.served}' that answered as '{model.name}', not '{model.served}'. "
                "Use another folder, or another name."
            )
        models[model.name] = model
        self._write(run.model_copy(update={"models": list(models.values())}))

    def rows(self) -> list[Row]:
        return list(read_lines(self._rows_file, Row))

    def answers(self) -> list[Answer]:
        """To every row, by every model as it is asked now, in that order; what is not answered yet is left out."""
        kept = {answer.key: answer for answer in read_lines(self.answers_file, Answer)}
        rows = self.rows()
        keys = [answer_key(row, model.name, model.decoding) for model in self.record().models for row in rows]
        return [kept[key] for key in keys if key in kept]

    def verdicts(self) -> list[Verdict]:
        return list(read_lines(self.verdicts_file, Verdict))

    def pairs(self) -> list[PairVerdict]:
        return list(read_lines(self.pairs_file, PairVerdict))

    def self_tests(self) -> list[Verdict]:
        return list(read_lines(self.selftest_file, Verdict))

    def labels(self) -> list[Label]:
        return list(read_lines(self.labels_file, Label))

    def translations(self) -> list[CheckedTranslation]:
        return list(read_lines(self.translations_file, CheckedTranslation, by_hand=True))

    def translated(self) -> list[Verdict]:
        return list(read_lines(self.translated_file, Verdict))

    def _has_answered(self, name: str) -> bool:
        return any(answer.model == name for answer in read_lines(self.answers_file, Answer))

    def _write(self, run: EvalRun) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._run_file.with_name(".run.json.part")
        with part.open("w", encoding="utf-8") as stream:
            stream.write(run.model_dump_json(indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(self._run_file)


def _new_run(charter: LoadedCharter) -> EvalRun:
    return EvalRun(charter=charter.charter.id, charter_hash=charter.hash, created=datetime.now(UTC))


def _recorded(suite: Suite) -> SuiteRecord:
    return SuiteRecord(name=suite.name, version=suite.version, hash=suite.hash, num_rows=len(suite.rows))


def missing_answers(answers: Sequence[Answer], rows: Sequence[Row], models: Sequence[AskedModel]) -> dict[str, int]:
    """By model: how many rows have no answer yet."""
    found = {(answer.model, answer.item) for answer in answers}
    missing = {model.name: sum((model.name, row.id) not in found for row in rows) for model in models}
    return {name: number for name, number in missing.items() if number}
