"""Answers from runs of lm-evaluation-harness: its `samples_*.jsonl` become lines of answers.jsonl, ready to be judged.

The harness must have asked our rows, as the folder that `vcllm eval export lm-eval` writes makes it do: each sample
carries its row. What another set asked cannot be judged by our rubrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vcllm.contracts.answers import Answer, Decoding, answer_key
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.importing.records import Record, read_records

SEED = 1234
"""What the harness sends to servers unless it is told otherwise."""


def import_lm_eval(
    samples_file: Path, suite_rows: Sequence[Row], model: str, decoding: Decoding | None = None
) -> list[Answer]:
    """One answer for each sample; raises BadRequest for one that is not about these rows, or was asked in other words.

    model: the name the answers are kept and shown under. decoding: None takes it from the samples.
    """
    rows = {row.id: row for row in suite_rows}
    decoding = decoding or decoding_of([samples_file])
    records = list(read_records(samples_file))
    created = datetime.fromtimestamp(samples_file.stat().st_mtime, UTC)
    answers = []
    for record in records:
        row = _row(record, rows)
        answers.append(
            Answer(
                key=answer_key(row, model, decoding),
                item=row.id,
                model=model,
                texts=[_response(record)],
                created=created,
            )
        )
    return answers


def decoding_of(samples_files: Iterable[Path]) -> Decoding:
    """How all of these samples were asked; raises BadRequest where they were not asked in one way."""
    found: Decoding | None = None
    for file in samples_files:
        for record in read_records(file):
            decoding = _decoding(record)
            if found is not None and decoding != found:
                raise record.fault(f"it was asked with {decoding!r}, earlier ones with {found!r}: take one run only")
            found = decoding
    if found is None:
        raise BadRequest("Name the samples of a run: samples_*.jsonl.")
    return found


def _row(record: Record, rows: Mapping[str, Row]) -> Row:
    doc = record.inner("doc")
    row = rows.get(str(doc.get("id")))
    if row is None:
        raise record.fault(
            f"its 'doc' is the row '{doc.get('id')}', which is not in the suite: name the suite that was exported"
        )
    asked = (doc.get("prompt"), doc.get("choices") or [], doc.get("lang"))
    if asked != (row.prompt, row.choices, row.lang.value):
        raise record.fault(
            f"row '{row.id}' was asked in other words than the suite's: name the version that was exported"
        )
    return row


def _response(record: Record) -> str:
    """What the model wrote, before any filter."""
    given = record.values.get("resps")
    responses = given[0] if isinstance(given, list) and len(given) == 1 else None
    if not isinstance(responses, list) or not all(isinstance(one, str) for one in responses):
        raise record.fault("'resps' holds no text: only tasks with `output_type: generate_until` can be judged")
    if len(responses) != 1:
        raise record.fault(f"'resps' holds {len(responses)} answers: run the task with `repeats: 1`")
    text: str = responses[0]
    return text


def _decoding(record: Record) -> Decoding:
    """As the sample says; what it does not say is what the harness does."""
    found = _generation(record.values.get("arguments"))
    return Decoding(
        temperature=float(found.get("temperature", 0.0)),
        top_p=float(found.get("top_p", 1.0)),
        max_tokens=int(found.get("max_gen_toks", found.get("max_tokens", 256))),
        seed=SEED,
    )


def _generation(arguments: Any) -> Mapping[str, Any]:
    """The generation arguments: of an object by name, or of a list of pairs in older versions."""
    if isinstance(arguments, dict):
        first = arguments.get("gen_args_0", {})
        found = first.get("arg_1") if isinstance(first, dict) else None
    else:
        found = arguments[0][1] if isinstance(arguments, list) and arguments and len(arguments[0]) > 1 else None
    return found if isinstance(found, dict) else {}
