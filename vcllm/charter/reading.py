"""Reads YAML that people write into contracts, and tells them what is wrong in their own words.

Knows nothing of what the files are about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from vcllm.contracts.base import Contract

C = TypeVar("C", bound=Contract)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times faster where libyaml is there, and as safe."""


class CharterError(ValueError):
    """A folder of YAML cannot be used; one sentence says where and what to do."""


def read(folder: Path, name: str) -> Any:
    """The content of a file; raises CharterError."""
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        raise CharterError(f"{name}: the file is missing from {folder}: add it") from None
    try:
        # Bytes, so that a wrong encoding is a YAML error too; ValueError is what an impossible date raises.
        return yaml.load(content, Loader=LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise CharterError(f"{name}: {_yaml_fault(error)}: correct the YAML there") from None


def _yaml_fault(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    fault = problem or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {fault}" if mark else f"the file cannot be read as YAML ({fault})"


def mapping(folder: Path, name: str) -> dict[Any, Any]:
    raw = read(folder, name)
    if not isinstance(raw, dict):
        raise CharterError(f"{name}: the file must hold keys and values: see the shipped {name}")
    return raw


def parse_list(model: type[C], folder: Path, name: str, noun: str) -> list[tuple[str, C]]:
    """Each entry of a file that is a list, and where it stands."""
    raw = read(folder, name)
    if not isinstance(raw, list) or not raw:
        raise CharterError(f"{name}: the file must hold a list of {noun}s: start each with '- id:'")
    found = []
    for number, entry in enumerate(raw, start=1):
        id = entry.get("id") if isinstance(entry, dict) else None
        where = f"{name}: {noun} {number} ({id})" if id else f"{name}: {noun} {number}"
        found.append((where, parse(model, entry, where)))
    return found


def parse(model: type[C], raw: Any, where: str) -> C:
    given = _without_blanks(raw)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise CharterError(f"{where}: {_fault(error, given)}") from None


def _without_blanks(raw: Any) -> Any:
    """Blank text becomes None, which no text field takes. Keys stay: a stray one must still be refused."""
    if isinstance(raw, dict):
        return {key: _without_blanks(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_without_blanks(value) for value in raw]
    return None if isinstance(raw, str) and not raw.strip() else raw


def _fault(error: ValidationError, raw: Any) -> str:
    """The first fault in an author's words; pydantic's own where they are good enough."""
    first = error.errors(include_url=False)[0]
    kind, path = first["type"], _path(first["loc"], raw)
    message = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"'{path}' is not a known key: remove it, correct its spelling, or quote a text with a comma"
    if kind == "missing" or (path and first["input"] is None):
        return f"{path} is missing: add it"
    if kind == "string_type":
        return f"{path} must be text: write it in quotes"
    return f"{path}: {message}: correct it" if path else f"{message}: correct it"


def _path(loc: tuple[int | str, ...], raw: Any) -> str:
    """`claims.2.en`: entries of a list are counted from one, as authors do; keys stay as written."""
    steps = []
    for step in loc:
        if isinstance(raw, list) and isinstance(step, int):
            steps.append(str(step + 1))
            raw = raw[step]
        else:
            steps.append(str(step))
            raw = raw.get(step) if isinstance(raw, dict) else None
    return ".".join(steps)
