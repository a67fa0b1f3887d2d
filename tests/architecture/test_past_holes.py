"""Rules that holes in other projects teach, held against every line of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from vcllm.charter.reading import LOADER

ROOT = Path(__file__).parents[2]
SOURCES = sorted(file for folder in ("vcllm", "services", "gateway") for file in (ROOT / folder).rglob("*.py"))

CODE_FROM_TEXT = {"eval", "exec", "compile", "__import__"}
"""Builtins that run what they are given."""
CODE_FROM_DATA = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("marshal", "loads"),
    ("shelve", "open"),
    ("dill", "load"),
    ("dill", "loads"),
    ("joblib", "load"),
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("os", "system"),
    ("os", "popen"),
}
ALLOWED = {"vcllm/charter/reading.py: yaml.load"}
"""With a loader that makes nothing but plain values, which a test below looks at."""
FLOORS = {
    "starlette": "0.49.1",
    "h11": "0.16.0",
    "python-multipart": "0.0.18",
    "aiohttp": "3.12.14",
    "jinja2": "3.1.6",
    "pyjwt": "2.10.1",
    "transformers": "4.53.0",
    "torch": "2.6.0",
}
"""The first version of each without the holes that are known of older ones."""


def calls(file: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def faults(file: Path) -> Iterator[str]:
    for call in calls(file):
        where = str(file.relative_to(ROOT))
        match call.func:
            case ast.Name(id=name) if name in CODE_FROM_TEXT:
                yield f"{where}: {name}"
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in CODE_FROM_DATA:
                yield f"{where}: {module}.{name}"
        for keyword in call.keywords:
            is_on = not (isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None))
            if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and is_on:
                yield f"{where}: {keyword.arg}"


def test_nothing_becomes_code():
    """No text of anybody is run, no pickle read, no shell asked: a plug-in is a package that somebody installed."""
    assert len(SOURCES) > 200

    assert {fault for file in SOURCES for fault in faults(file)} == ALLOWED


@pytest.mark.parametrize(
    "line",
    ["eval(text)", "torch.load(file)", "yaml.load(text, Loader=L)", "run(x, shell=True)", "f(trust_remote_code=on)"],
)
def test_the_rule_sees_what_it_forbids(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch):
    """So the test above says something."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(line)

    assert len(list(faults(tmp_path / "bad.py"))) == 1


def test_yaml_makes_plain_values_only():
    """The one place that reads YAML with a loader of its own."""
    assert issubclass(LOADER, yaml.SafeLoader | yaml.CSafeLoader)


@pytest.mark.parametrize("package", FLOORS)
def test_no_version_with_a_known_hole_is_installed(package: str):
    """By the pins of `constraints.txt`, which every install uses."""
    assert Version(version(package)) >= Version(FLOORS[package])
