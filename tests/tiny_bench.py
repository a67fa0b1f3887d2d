"""A set of the shape of VC-Bench for two sub-domains, of random words; the first passes the checks of a sub-domain.

Nothing in it means anything, but for the answers of its self-test, which `bench_world`'s judge can read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bench_world import WORDS
from vcllm.contracts.base import Language
from vcllm.contracts.bench import SelfTestFault, UnitKind
from vcllm.evaluation.bench.load import load_bench, write_release
from vcllm.evaluation.bench.qc import COUNTS, DEV_COUNTS

SUBDOMAINS = ("soc.class", "race.color")
VERSION = "1.0"
EXPECTED = ("answer", "answer_balanced", "correct_premise")
SETS = (UnitKind.COUNTERFACTUAL, UnitKind.MIRROR)
PRESSING = (UnitKind.PREMISE, UnitKind.WRAPPER, UnitKind.PRESSURE)
LETTERS = "bcdfghjklmnpqrstvwxz"


def write_bench(folder: Path) -> Path:
    """The folder, with the set in it under version 1.0."""
    for subdomain in SUBDOMAINS:
        _write(folder / "test" / f"{subdomain}.yaml", list(_units("test", subdomain, COUNTS)))
        counts = DEV_COUNTS | {UnitKind.COUNTERFACTUAL: 2}
        _write(folder / "dev" / f"{subdomain}.yaml", list(_units("dev", subdomain, counts)))
    tested = SUBDOMAINS[0]
    _write(folder / "selftest" / f"{tested}.yaml", [_pair(tested, n, fault) for n, fault in enumerate(SelfTestFault)])
    (folder / "release.json").write_text(json.dumps({"version": VERSION, "canary": "canary"}))
    write_release(folder, load_bench(folder, check_hash=False), VERSION)
    return folder


def edit(file: Path, **fields: Any) -> None:
    """Change the first entry."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    entries[0] |= fields
    _write(file, entries)


def _write(file: Path, entries: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Every JSON text is a YAML text.
    file.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")


def _units(split: str, subdomain: str, counts: dict[UnitKind, int]) -> Iterator[dict[str, Any]]:
    for kind, count in counts.items():
        for number in range(count):
            yield _unit(split, subdomain, kind, number)


def _unit(split: str, subdomain: str, kind: UnitKind, number: int) -> dict[str, Any]:
    id = f"{subdomain}-{kind}-{number:03}"
    # Members of a set share their words; each look-alike those of a direct unit.
    words = f"{split} {subdomain} {kind} {number // 2 if kind in SETS else number}"
    likened = f"{subdomain}-direct-000" if kind is UnitKind.BENIGN else None
    group = _words(f"group {number}")[:2] if kind is UnitKind.COUNTERFACTUAL else None
    named = group or (_words(f"{split} {subdomain} direct 0")[:2] if likened else ("", ""))
    expected = "comply_fully" if likened else EXPECTED[(number // 2) % 3]
    unit = {
        "id": id,
        "topic": f"{split}-{kind}-{number}",
        "stance_type": "contested",
        "expected": expected,
        "attack_style": "assumed_fact" if kind in PRESSING else None,
        "principles": ["dignity"],
        "set": f"s-{kind}-{number // 2}" if kind in SETS else None,
        "group": dict(zip(Language, group, strict=True)) if group else None,
        "group_role": "peer" if group else None,
        "mirror_side": "ab"[number % 2] if kind is UnitKind.MIRROR else None,
        "lookalike_of": likened,
        "difficulty": 1,
    }
    for place, language in enumerate(Language):
        turns = 4 if kind is UnitKind.PRESSURE else 1
        prompt = [
            f"{named[place]} {_words(f'{words} {turn}' if turn else words)[place + 2]}".strip() for turn in range(turns)
        ]
        unit[language.value] = {"prompt": prompt} | _rubric(language)
    return {name: value for name, value in unit.items() if value is not None}


def _words(seed: str) -> tuple[str, str, str, str]:
    """One short word in Chinese and in English, then the rest of a sentence in each; the same for the same seed."""
    chance = random.Random(seed)
    chinese = "".join(chr(chance.randrange(0x4E00, 0x9000)) for _ in range(14))
    english = ["".join(chance.choices(LETTERS, k=7)) for _ in range(8)]
    return chinese[:2], english[0], chinese[:12], " ".join(english)


def _rubric(language: Language) -> dict[str, Any]:
    word = "公平地讲清两面" if language is Language.ZH else "says what speaks for either side"
    return {"stance": word, "must": [word], "must_not": [word]}


def _pair(subdomain: str, number: int, fault: SelfTestFault) -> dict[str, Any]:
    """The bad answer is a little longer than the good one."""
    pair: dict[str, Any] = {
        "id": f"{subdomain}-selftest-{number + 1:03}",
        "stance_type": "contested",
        "expected": "answer_balanced",
        "fault": fault.value,
        "principles": ["dignity"],
    }
    for place, language in enumerate(Language):
        said, rest = WORDS[language], _words(f"{subdomain} {fault}")[place + 2]
        more = "真是这样" if language is Language.ZH else "and more"
        answers = {"good": f"{said['good']} {rest}", "bad": f"{said['agree']} {rest} {more}"}
        pair[language.value] = {"prompt": rest} | _rubric(language) | answers
    return pair
