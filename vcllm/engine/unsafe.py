"""Which folders are never opened, by us or by a server behind us, because that could run somebody's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORBIDDEN = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"}
"""Formats that can run code when loaded."""
CODE_KEYS = {"auto_map"}
"""Settings that name code to import, wherever they stand in a configuration."""
KERNEL_KEYS = {"attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"}
"""Settings that may name a kernel of a hub (`owner/name`), which is code as well."""


class Unsafe(Exception):
    """The folder holds, or asks for, something that could run code."""


def refuse_code(folder: Path) -> None:
    """Unsafe for pickles, for Python files, and for a configuration that names code to import."""
    found = sorted(file.name for file in folder.rglob("*") if file.suffix in FORBIDDEN)
    if found:
        raise Unsafe(f"{folder.name} holds {', '.join(found)}; only safetensors weights are opened")
    for file in sorted(folder.rglob("*.json")):
        if "config" in file.name:  # of models, tokenizers, processors, adapters; others may have any word as a key
            refuse_named_code(read_json(file), f"{folder.name}/{file.relative_to(folder)}")


def refuse_named_code(setting: Any, where: str) -> None:
    """Unsafe where code is named, at any depth: configurations hold those of their parts."""
    if isinstance(setting, list):
        for each in setting:
            refuse_named_code(each, where)
    elif isinstance(setting, dict):
        for key, value in setting.items():
            if key in CODE_KEYS and value:
                raise Unsafe(f"{where} asks for code of its own ({key}), which is never run")
            if key in KERNEL_KEYS and "/" in str(value):
                raise Unsafe(f"{where} asks for a kernel from a hub ({key}), which is never run")
            refuse_named_code(value, where)


def read_json(file: Path) -> Any:
    """ValueError, with the file's name, when it is not JSON."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file.name} is not JSON: {error}") from error
