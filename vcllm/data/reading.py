"""From a path to rows: a JSONL or Parquet file, or a local folder of them, or one that `datasets` has saved.

Everything is read from the disk, row by row; nothing is fetched and no code of a data set is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vcllm.contracts.problems import BadRequest
from vcllm.data.jsonl import Found, read_jsonl
from vcllm.data.tables import read_arrow, read_parquet

SPLIT = "train"
READERS: dict[str, Callable[[Path], Iterator[Found]]] = {".jsonl": read_jsonl, ".parquet": read_parquet}
FORMATS = "a .jsonl or .parquet file, a folder of them, or a folder made by `datasets` with save_to_disk"
NAMED_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=[-._])")
"""How a file's name says to which split it belongs; only `train` is trained on."""


def read_set(path: Path) -> Iterator[Found]:
    """Every row of a file or folder, in order; BadRequest where there is nothing that can be read."""
    if not path.exists():
        raise BadRequest(f"There is no data at {path}. Put it there or correct the path.")
    if path.is_file():
        return _reader(path)(path)
    if (path / "dataset_dict.json").is_file():
        return _read_saved(_train_of(path))
    if (path / "state.json").is_file():
        return _read_saved(path)
    return _read_files(_files(path), _reader)


def _reader(file: Path) -> Callable[[Path], Iterator[Found]]:
    if file.suffix not in READERS:
        raise BadRequest(f"{file.name} cannot be read. Bring {FORMATS}.")
    return READERS[file.suffix]


def _train_of(folder: Path) -> Path:
    """The split of a saved DatasetDict that is trained on."""
    splits = _json(folder / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or SPLIT not in splits or not (folder / SPLIT).is_dir():
        found = ", ".join(map(str, splits)) if isinstance(splits, list) and splits else "none"
        raise BadRequest(f"{folder.name} has no split '{SPLIT}' (found: {found}). Save the one you mean on its own.")
    return folder / SPLIT


def _read_saved(folder: Path) -> Iterator[Found]:
    """A folder that `datasets` has written with `save_to_disk`: Arrow files in the order of its state."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise BadRequest(f"{folder.name} is a selection from another set. Save it again with datasets 2 or newer.")
    entries = state.get("_data_files") or []
    names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
    files = [folder / name for name in names if Path(name).name == name and (folder / name).is_file()]
    if not files or len(files) < len(entries):
        raise BadRequest(f"{folder.name} is not complete: state.json names files that are not there. Save it again.")
    return _read_files(files, lambda _: read_arrow)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file} cannot be read ({error}). Save the data set again.") from None
    if not isinstance(found, dict):
        raise BadRequest(f"{file} is not what `datasets` writes. Save the data set again.")
    return found


def _files(folder: Path) -> list[Path]:
    """The folder's data files, by name; those of the training split where names tell splits apart."""
    places = (folder, folder / "data")
    files = sorted(file for place in places for suffix in READERS for file in place.glob(f"*{suffix}"))
    splits = [named[1] if (named := NAMED_SPLIT.match(file.name)) else None for file in files]
    if not files:
        raise BadRequest(f"{folder.name} holds no data. Bring {FORMATS}.")
    if SPLIT not in splits and any(splits):
        names = ", ".join(file.name for file in files[:5])
        raise BadRequest(f"{folder.name} has no file of the split '{SPLIT}' (found: {names}). Name the file you mean.")
    return [file for file, split in zip(files, splits, strict=True) if split == SPLIT] or files


def _read_files(files: list[Path], reader: Callable[[Path], Callable[[Path], Iterator[Found]]]) -> Iterator[Found]:
    for file in files:
        for found in reader(file)(file):
            yield found if len(files) == 1 else replace(found, where=f"{file.name} {found.where}")
