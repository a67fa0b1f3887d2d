"""Reads VC-Bench: units of the splits, the judge's self-test, and the release that vouches for them by hash.

Knows files and how units become rows. Whether the content is any good is the business of `qc`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vcllm.charter.reading import CharterError, parse_list
from vcllm.contracts.base import Contract, Language, canonical_json, digest
from vcllm.contracts.bench import Row, SelfTestPair, Unit, UnitKind
from vcllm.contracts.charter import Fact, Split

SHIPPED = Path(__file__).parent / "data"
RELEASE = "release.json"
SPLITS = (Split.TEST, Split.DEV)
NAME = "vc-bench"


class BenchError(ValueError):
    """The set cannot be used; one sentence says where and what to do."""


class Release(Contract):
    """What a version of the set is: the canary of its test rows and the hash of everything in it."""

    version: str
    canary: str
    """A random text that stands in every test row; finding it in a corpus shows that the set leaked."""
    hashes: dict[str, str] = Field(default_factory=dict)
    """Split or `selftest` to the sha256 of its units in canonical form."""


@dataclass(frozen=True)
class Bench:
    """The whole set in memory."""

    release: Release
    units: dict[Split, tuple[Unit, ...]]
    """By file name, then in the order of the file."""
    selftest: tuple[SelfTestPair, ...]

    @property
    def hash(self) -> str:
        """Hex sha256 over all splits: what stands in reports."""
        return digest(self.release.hashes)

    def rows(self, *splits: Split) -> list[Row]:
        """Both halves of every unit, Chinese first."""
        return [row for split in splits for unit in self.units[split] for row in rows_of(unit, split, self.release)]


def load_bench(folder: Path | None = None, check_hash: bool = True) -> Bench:
    """Read the set in `folder`, or the shipped one for None; raises BenchError.

    check_hash: False while the set is being written; then the release carries the hashes that were found.
    """
    folder = SHIPPED if folder is None else Path(folder)
    units = {split: tuple(load_units(folder, split)) for split in SPLITS}
    selftest = tuple(_load(SelfTestPair, folder, "selftest", "pair"))
    found = {split.value: content_hash(units[split]) for split in SPLITS} | {"selftest": content_hash(selftest)}
    release = read_release(folder)
    if not check_hash:
        return Bench(release.model_copy(update={"hashes": found}), units, selftest)
    for part, hash in found.items():
        if release.hashes.get(part) != hash:
            raise BenchError(
                f"{folder / part}: the content is not that of version {release.version}: restore the files, or, if the "
                "change is meant, raise the version with `vcllm data qc --release VERSION`"
            )
    return Bench(release, units, selftest)


def held_out_questions(folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Row id and first turn of every question, to look for in training data; later turns are too common for that."""
    folder = SHIPPED if folder is None else folder
    for split in SPLITS:
        for unit in load_units(folder, split):
            yield from ((f"vcb-{unit.id}-{language}", unit[language].prompt[0]) for language in Language)


def load_units(folder: Path, split: Split) -> Iterator[Unit]:
    """The units of one split, in the order of files and entries."""
    return _load(Unit, folder, split.value, "unit")


def read_release(folder: Path) -> Release:
    try:
        return Release.model_validate_json((folder / RELEASE).read_bytes())
    except FileNotFoundError:
        raise BenchError(f"{folder / RELEASE}: the file is missing: this is no folder of the set") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"]
        raise BenchError(f"{folder / RELEASE}: {fault}: restore the file") from None


def write_release(folder: Path, bench: Bench, version: str) -> Release:
    """Give what is there a version; raises BenchError when that version already means something else."""
    old = read_release(folder)
    if version == old.version and old.hashes and old.hashes != bench.release.hashes:
        raise BenchError(f"version {version} is out already with other content: choose the next one")
    new = old.model_copy(update={"version": version, "hashes": bench.release.hashes})
    part = folder / f".{RELEASE}.part"
    part.write_text(json.dumps(new.model_dump(), indent=1) + "\n", encoding="utf-8")
    part.replace(folder / RELEASE)
    return new


def content_hash(entries: Iterable[Unit | SelfTestPair]) -> str:
    """Does not depend on files and order."""
    hasher = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.id):
        hasher.update(canonical_json(entry.model_dump(mode="json", exclude_none=True)) + b"\n")
    return hasher.hexdigest()


def rows_of(unit: Unit, split: Split, release: Release) -> list[Row]:
    """The unit's two rows."""
    return [_row(unit, language, split, release) for language in Language]


def _row(unit: Unit, language: Language, split: Split, release: Release) -> Row:
    half = unit[language]
    pair_id = f"vcb-{unit.id}"
    return Row(
        id=f"{pair_id}-{language}",
        pair_id=pair_id,
        cluster_id=f"vcb-{unit.cluster}",
        set_id=f"vcb-{unit.cluster}" if unit.set else None,
        lang=language,
        domain=unit.domain,
        subdomain=unit.subdomain,
        kind=unit.kind,
        attack_style=unit.attack_style,
        stance_type=unit.stance_type,
        topic=unit.topic,
        prompt=half.prompt,
        expected=unit.expected,
        reference_stance=half.stance,
        must=half.must,
        must_not=half.must_not,
        nice=half.nice,
        facts=[_told(fact, language) for fact in unit.facts],
        principles=unit.principles,
        group=unit.group[language] if unit.group else None,
        group_role=unit.group_role,
        mirror_side=unit.mirror_side,
        locale=unit.locale,
        tags=unit.tags,
        difficulty=unit.difficulty,
        split=split,
        origin=f"{NAME}@{release.version}",
        canary=release.canary if split is Split.TEST else "",
    )


def _told(fact: Fact, language: Language) -> str:
    text = fact.zh if language is Language.ZH else fact.en
    return text if fact.date is None else f"{text} ({fact.date})"


def _load(model: type[Unit] | type[SelfTestPair], folder: Path, part: str, noun: str) -> Iterator[Any]:
    names = sorted(f"{part}/{file.name}" for file in (folder / part).glob("*.yaml"))
    if not names:
        raise BenchError(f"{folder / part}: there is no *.yaml file: restore the set")
    seen: dict[str, str] = {}
    for name in names:
        try:
            entries = parse_list(model, folder, name, noun)
        except CharterError as error:
            raise BenchError(str(error)) from None
        for where, entry in entries:
            if entry.id in seen:
                raise BenchError(f"{where}: the id is already used by {seen[entry.id]}: renumber one of them")
            if not name.endswith(f"/{entry.subdomain}.yaml"):
                raise BenchError(f"{where}: the id belongs into {part}/{entry.subdomain}.yaml: move it or correct it")
            seen[entry.id] = where
            yield entry


SMOKE_KINDS = {
    UnitKind.DIRECT: 4,
    UnitKind.PREMISE: 3,
    UnitKind.WRAPPER: 3,
    UnitKind.COUNTERFACTUAL: 4,
    UnitKind.MIRROR: 4,
    UnitKind.BENIGN: 6,
    UnitKind.PRESSURE: 2,
}
"""Units of the smoke suite: 26, 52 prompts, every kind in it and each sub-domain twice."""
