"""BBQ (English) and CBBQ (Chinese): who did it, when the context says, and when it does not.

Bias can be counted only where it is known which option is the group that the stereotype is about. Neither set says so
outright; where it cannot be told, a row is imported for its accuracy alone (`mc`), and none is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.importing.records import Record, read_records
from vcllm.evaluation.importing.rows import Read, choice_row

ANSWERS = ("ans0", "ans1", "ans2")
CONDITIONS = {
    "ambig": "ambiguous",
    "ambiguous": "ambiguous",
    "disambig": "disambiguated",
    "disambiguous": "disambiguated",
}
POLARITIES = {"neg": "neg", "nonneg": "nonneg", "non_neg": "nonneg"}
"""CBBQ's files write the second one with a line."""
BBQ_SUBDOMAINS = {
    "Age": "soc.vulnerable",
    "Disability_status": "soc.vulnerable",
    "Gender_identity": "soc.gender",
    "Nationality": "race.migrant",
    "Physical_appearance": "race.color",
    "Race_ethnicity": "race.color",
    "Race_x_SES": "race.color",
    "Race_x_gender": "race.color",
    "Religion": "soc.religion",
    "SES": "soc.class",
    "Sexual_orientation": "soc.gender",
}
CBBQ_SUBDOMAINS = {
    "SES": "soc.class",
    "age": "soc.vulnerable",
    "disability": "soc.vulnerable",
    "disease": "soc.vulnerable",
    "educational_qualification": "soc.class",
    "ethnicity": "race.ethnic",
    "gender": "soc.gender",
    "household_registration": "soc.class",
    "nationality": "race.migrant",
    "physical_appearance": "race.color",
    "race": "race.color",
    "region": "soc.class",
    "religion": "soc.religion",
    "sexual_orientation": "soc.gender",
}
CBBQ_UNKNOWN = 2
"""The last option of CBBQ is the unknown one: its templates name the two groups first."""
SAME_GROUP = {"woman": "f", "girl": "f", "female": "f", "man": "m", "boy": "m", "male": "m"}


@dataclass(frozen=True)
class Item:
    """One question of either set."""

    id: str
    lang: Language
    category: str
    condition: str
    polarity: str
    question_index: str
    context: str
    question: str
    options: tuple[str, ...]
    label: int
    unknown: int | None
    target: int | None
    """The option of the group that the stereotype is about; None: it cannot be told."""
    target_by: str = "name"
    """How it was told: `name`, or in CBBQ `label` or `twin`."""

    @property
    def named(self) -> list[int]:
        """Options that name somebody."""
        return [number for number in range(len(self.options)) if number != self.unknown]


def read_bbq(files: Sequence[Path], origin: str) -> Read:
    items = [_bbq_item(record) for file in files for record in read_records(file)]
    return _read(items, "bbq", BBQ_SUBDOMAINS, origin)


def _bbq_item(record: Record) -> Item:
    category = record.one_of("category", BBQ_SUBDOMAINS)
    options = tuple(record.text(answer) for answer in ANSWERS)
    info, more = record.inner("answer_info"), record.inner("additional_metadata")
    if missing := [answer for answer in ANSWERS if not isinstance(info.get(answer), list)]:
        raise record.fault(f"'answer_info' has no list '{missing[0]}'; found: {', '.join(info)}")
    if not isinstance(more.get("stereotyped_groups"), list):
        raise record.fault(f"'additional_metadata' has no list 'stereotyped_groups'; found: {', '.join(more)}")
    unknown = [number for number, answer in enumerate(ANSWERS) if "unknown" in info[answer]]
    item = Item(
        id=f"bbq-{category}-{record.number('example_id')}",
        lang=Language.EN,
        category=category,
        condition=CONDITIONS[record.one_of("context_condition", ("ambig", "disambig"))],
        polarity=POLARITIES[record.one_of("question_polarity", ("neg", "nonneg"))],
        question_index=record.text("question_index"),
        context=record.text("context"),
        question=record.text("question"),
        options=options,
        label=record.index("label", options),
        unknown=unknown[0] if len(unknown) == 1 else None,
        target=None,
    )
    groups = [[str(one) for one in info[answer]] for answer in ANSWERS]
    return replace(item, target=_bbq_target(item, groups, [str(one) for one in more["stereotyped_groups"]]))


def _bbq_target(item: Item, groups: Sequence[Sequence[str]], stereotyped: Iterable[str]) -> int | None:
    """The one option whose group is stereotyped: by its whole name, else by a part, as in `F-Black`."""
    wanted = [_plain(name) for name in stereotyped]
    for names_of in (_whole, _parts):
        targets = {name for one in wanted for name in names_of(one)}
        found = [number for number in item.named if targets & {n for name in groups[number] for n in names_of(name)}]
        if len(found) == 1:
            return found[0]
    return None


def _whole(name: str) -> set[str]:
    return {_plain(name)}


def _parts(name: str) -> set[str]:
    return {_plain(part) for part in re.split(r"[-_/]", name) if part.strip()}


def _plain(name: str) -> str:
    bare = re.sub(r"\s+", "", name).casefold()
    return SAME_GROUP.get(bare, bare)


def read_cbbq(files: Sequence[Path], origin: str) -> Read:
    if len({file.suffix for file in files}) > 1:
        raise BadRequest("The .json and .csv files of CBBQ hold the same questions. Give one kind of them.")
    numbers: Counter[str] = Counter()
    items = []
    for file in files:
        for record in read_records(file):
            items.append(_cbbq_item(record, numbers))
    return _read(_with_twins(items), "cbbq", CBBQ_SUBDOMAINS, origin)


def _cbbq_item(record: Record, numbers: Counter[str]) -> Item:
    """Numbered by its place among its like: the ids in the files begin anew in each."""
    category = record.one_of("category", CBBQ_SUBDOMAINS)
    condition = CONDITIONS[record.one_of("context_condition", ("ambiguous", "disambiguous"))]
    place = f"{category}-{condition}"
    numbers[place] += 1
    options = tuple(record.text(answer) for answer in ANSWERS)
    item = Item(
        id=f"cbbq-{place}-{numbers[place]}",
        lang=Language.ZH,
        category=category,
        condition=condition,
        polarity=POLARITIES[record.one_of("question_polarity", POLARITIES)],
        question_index=record.text("question_index"),
        context=record.text("context"),
        question=record.text("question"),
        options=options,
        label=record.index("label", options),
        unknown=CBBQ_UNKNOWN,
        target=None,
    )
    return _cbbq_target(item, record.text("bias_targeted_groups"))


def _cbbq_target(item: Item, groups: str) -> Item:
    """By the group's name where exactly one option has it; else, where the context says who it was, by the label.

    The right answer of a context that says so goes against the stereotype: the other group in a negative question, the
    targeted one in a non-negative question. So it is in the templates of age, household registration and religion; the
    other categories were not looked at, and `target_by` keeps such rows apart. A label that does not fit its context
    tells nothing.
    """
    if (item.condition == "ambiguous") != (item.label == CBBQ_UNKNOWN):
        return item
    names = [name.strip() for name in re.split(r"[/、，,；;]", groups) if name.strip()]
    found = [number for number in item.named if any(name in item.options[number] for name in names)]
    if len(found) == 1:
        return replace(item, target=found[0])
    if item.condition == "disambiguated":
        target = next(n for n in item.named if (n == item.label) == (item.polarity == "nonneg"))
        return replace(item, target=target, target_by="label")
    return item


def _with_twins(items: Sequence[Item]) -> list[Item]:
    """Ambiguous questions learn their target from the question with the same options whose context says who it was."""
    targets: dict[tuple[str, str, str, frozenset[str]], set[str]] = {}
    for item in items:
        if item.condition == "disambiguated" and item.target is not None:
            targets.setdefault(_twin_of(item), set()).add(item.options[item.target])
    return [_from_twin(item, targets.get(_twin_of(item), set())) for item in items]


def _twin_of(item: Item) -> tuple[str, str, str, frozenset[str]]:
    return item.category, item.polarity, item.question_index, frozenset(item.options[n] for n in item.named)


def _from_twin(item: Item, targets: set[str]) -> Item:
    if item.target is not None or len(targets) != 1:
        return item
    return replace(item, target=item.options.index(next(iter(targets))), target_by="twin")


def _read(items: Sequence[Item], scorer: Literal["bbq", "cbbq"], subdomains: Mapping[str, str], origin: str) -> Read:
    rows = [_row(item, scorer, subdomains[item.category], origin) for item in items]
    untold = sum(row.scorer == "mc" for row in rows)
    if not untold:
        return Read(rows)
    return Read(
        rows,
        (
            f"In {untold} of {len(rows)} questions it cannot be told which option is the stereotyped group: they are "
            "imported for their accuracy alone.",
        ),
    )


def _row(item: Item, scorer: Literal["bbq", "cbbq"], subdomain: str, origin: str) -> Row:
    meta = {"condition": item.condition, "polarity": item.polarity, "question_index": item.question_index}
    told = item.target is not None and item.unknown is not None
    if told:
        meta |= {"unknown_index": str(item.unknown), "target_index": str(item.target), "target_by": item.target_by}
    return choice_row(
        item.id,
        item.lang,
        f"{item.context}\n{item.question}",
        item.options,
        item.label,
        origin,
        item.category,
        scorer=scorer if told else "mc",
        subdomain=subdomain,
        cluster=f"{scorer}-{item.category}-{item.question_index}",
        meta=meta,
    )
