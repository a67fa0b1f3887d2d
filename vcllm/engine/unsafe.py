"""Which folders are never opened, by us or by a server behind us, because that could run somebody's code."""

from __future__ import annotations

import json
from pathlib import Path

FORBIDDEN = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"}
"""Formats that can run code when loaded."""
CONFIGS = {"config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"}


class Unsafe(Exception):
    """The folder holds, or asks for, something that could run code."""


def refuse_code(folder: Path) -> None:
    """Unsafe for pickles, for Python files, and for a configuration that names code to import."""
    found = sorted(file.name for file in folder.rglob("*") if file.suffix in FORBIDDEN)
    if found:
        raise Unsafe(f"{folder.name} holds {', '.join(found)}; only safetensors weights are opened")
    for file in folder.rglob("*.json"):
        if file.name in CONFIGS and "auto_map" in json.loads(file.read_text()):
            raise Unsafe(f"{folder.name}/{file.name} asks for code of its own (auto_map), which is never run")
