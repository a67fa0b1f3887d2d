"""From a set's name and the user's files to rows, with the revision they came from; and to prompts for training.

The terms of a set are shown, never hidden: training on what nobody has allowed takes a word of consent, which is kept.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from vcllm.contracts.base import Contract, Language
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.importing.bias import read_bbq, read_cbbq
from vcllm.evaluation.importing.mirrors import read_even_handedness
from vcllm.evaluation.importing.prompts import (
    read_do_not_answer,
    read_do_not_answer_zh,
    read_flames,
    read_or_bench,
    read_strongreject,
    read_xstest,
)
from vcllm.evaluation.importing.registry import SetInfo, set_named
from vcllm.evaluation.importing.rows import Read
from vcllm.evaluation.importing.safetybench import read_safetybench

READERS: dict[str, Callable[[Sequence[Path], str], Read]] = {
    "safetybench": read_safetybench,
    "bbq": read_bbq,
    "cbbq": read_cbbq,
    "xstest": read_xstest,
    "or-bench": read_or_bench,
    "flames": read_flames,
    "do-not-answer": read_do_not_answer,
    "do-not-answer-zh": read_do_not_answer_zh,
    "even-handedness": read_even_handedness,
    "strongreject": read_strongreject,
}


@dataclass(frozen=True)
class Imported:
    """A set that was read."""

    rows: tuple[Row, ...]
    info: SetInfo
    revision: str
    """Given by the user, else the hash of the files."""
    notes: tuple[str, ...] = ()
    """What a user should know of these files."""


class TrainingPrompt(Contract):
    """A line of prompts for training: a question without an answer."""

    prompt: str
    language: Language
    source: str
    """`import:<set>@<revision>`."""
    meta: dict[str, str] = Field(default_factory=dict)
    """Category and licence, and what was accepted to use it."""


def import_set(name: str, files: Sequence[Path], revision: str | None = None) -> Imported:
    """Rows of a public set from files or folders on this machine; raises BadRequest, nothing is imported by halves.

    revision: of the set, as its home names it, such as a commit; None: named by the hash of the files.
    """
    info = set_named(name)
    found = data_files(info, files)
    revision = revision or hash_of(found)
    if not re.fullmatch(r"[\w.+-]{1,80}", revision):
        raise BadRequest(f"'{revision}' is no revision: use a commit or a version, without spaces.")
    read = READERS[name](found, f"import:{name}@{revision}")
    repeated = [id for id, count in Counter(row.id for row in read.rows).items() if count > 1]
    if repeated:
        raise BadRequest(f"The id '{repeated[0]}' is there twice. Give every file of {info.title} once.")
    return Imported(tuple(read.rows), info, revision, read.notes)


def data_files(info: SetInfo, files: Sequence[Path]) -> list[Path]:
    """The files, and from folders those with names as the set has them, in the order of their names."""
    found: list[Path] = []
    for file in files:
        if file.is_dir():
            inside = sorted(one for one in file.rglob("*") if one.is_file() and re.fullmatch(info.pattern, one.name))
            if not inside:
                raise BadRequest(f"{file} holds no data file of {info.title}. Get them from {info.url}.")
            found += inside
        elif file.is_file():
            found.append(file)
        else:
            raise BadRequest(f"There is no file {file}. Get the data of {info.title} from {info.url}.")
    if not found:
        raise BadRequest(f"Name the data files of {info.title}. They are at {info.url}.")
    return found


def hash_of(files: Sequence[Path]) -> str:
    """`sha256-` and the beginning of a hash over the content of all files; their names and order do not matter."""
    hashes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return "sha256-" + hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def training_prompts(imported: Imported, accept_licence: bool = False) -> list[TrainingPrompt]:
    """The set's prompts for training; raises BadRequest where its terms speak against it, unless they are accepted.

    Questions with choices are left out: they are for measuring only.
    """
    faults = imported.info.training_faults()
    if faults and not accept_licence:
        raise BadRequest(
            f"{' '.join(faults)} Training on it is refused; if you have the right to, say so with --accept-licence."
        )
    terms = {"licence": imported.info.terms} | ({"accepted": " ".join(faults)} if faults else {})
    prompts = [
        TrainingPrompt(
            prompt=row.prompt[0],
            language=row.lang,
            source=row.origin,
            meta={**terms, "kind": row.kind, "category": row.meta.get("category", "")},
        )
        for row in imported.rows
        if not row.choices
    ]
    if not prompts:
        raise BadRequest(f"{imported.info.title} has multiple-choice questions only: they are no prompts to train on.")
    return prompts
