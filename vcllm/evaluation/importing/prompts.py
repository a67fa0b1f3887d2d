"""Sets of single prompts: XSTest, OR-Bench, Flames, Do-Not-Answer, StrongREJECT.

What a good answer must not simply serve is an attack; what only looks like it is benign, and refusing it is the fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Expected, Row, UnitKind
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.importing.records import Record, read_records
from vcllm.evaluation.importing.rows import ATTACK, OTHER, Read, prompt_row

BENIGN = UnitKind.BENIGN.value
DECLINE = Expected.DECLINE_WITH_REASON
XSTEST_KINDS = {"safe": BENIGN, "unsafe": ATTACK}
XSTEST_TYPES = (
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "real_group_nons_discr",
    "nons_group_real_discr",
    "historical_events",
    "privacy_public",
    "privacy_fictional",
    "contrast_homonyms",
    "contrast_figurative_language",
    "contrast_safe_targets",
    "contrast_safe_contexts",
    "contrast_definitions",
    "contrast_discr",
    "contrast_historical_events",
    "contrast_privacy",
)
OR_BENCH_KINDS = {"or-bench-80k": BENIGN, "or-bench-hard-1k": BENIGN, "or-bench-toxic": ATTACK}
OR_BENCH_CATEGORIES = (
    "deception",
    "harassment",
    "harmful",
    "hate",
    "illegal",
    "privacy",
    "self-harm",
    "sexual",
    "unethical",
    "violence",
)
FLAMES_SUBDOMAINS = {
    "Fairness": OTHER,
    "Safety": OTHER,
    "Morality": "soc.ethics",
    "Legality": OTHER,
    "Data protection": OTHER,
}
DO_NOT_ANSWER_SUBDOMAINS = {
    "Information Hazards": OTHER,
    "Malicious Uses": OTHER,
    "Discrimination, Exclusion, Toxicity, Hateful, Offensive": OTHER,
    "Misinformation Harms": "soc.ethics",
    "Human-Chatbot Interaction Harms": OTHER,
}
LOOK_COLUMNS = ("question_type", "attack_type", "perspective", "type")
"""Under one of these names a file of the Chinese set may say how a question looks."""
LOOKS = {
    "original": ATTACK,
    "direct": ATTACK,
    "evasive": ATTACK,
    "fn": ATTACK,
    "false negative": ATTACK,
    "harmless": BENIGN,
    "fp": BENIGN,
    "false positive": BENIGN,
}
"""The Chinese set asks each question openly, evasively (false negatives), and harmlessly in its words (false
positives)."""
STRONGREJECT_CATEGORIES = (
    "Disinformation and deception",
    "Hate, harassment and discrimination",
    "Illegal goods and services",
    "Non-violent crimes",
    "Sexual content",
    "Violence",
)


def read_xstest(files: Sequence[Path], origin: str) -> Read:
    rows: list[Row] = []
    for record in _records(files):
        type = record.one_of("type", XSTEST_TYPES)
        kind = XSTEST_KINDS[record.one_of("label", XSTEST_KINDS)]
        id = f"xstest-{record.text('id') if record.has('id') else len(rows) + 1}"
        rows.append(prompt_row(id, Language.EN, record.text("prompt"), origin, type, kind=kind, expected=DECLINE))
    return Read(rows)


def read_or_bench(files: Sequence[Path], origin: str) -> Read:
    rows: list[Row] = []
    for file in files:
        kind = OR_BENCH_KINDS.get(file.stem)
        if kind is None:
            raise BadRequest(
                f"{file}: the file's name says whether its prompts are harmless. It should be one of "
                f"{', '.join(f'{name}.csv' for name in OR_BENCH_KINDS)}."
            )
        for number, record in enumerate(read_records(file), start=1):
            category = record.one_of("category", OR_BENCH_CATEGORIES)
            id = f"{file.stem}-{number}"
            rows.append(
                prompt_row(id, Language.EN, record.text("prompt"), origin, category, kind=kind, expected=DECLINE)
            )
    return Read(rows)


def read_flames(files: Sequence[Path], origin: str) -> Read:
    """Prompts that invite a fault but do not always ask for one: what is expected differs, so nothing is said of it."""
    rows = []
    for number, record in enumerate(_records(files), start=1):
        dimension = record.one_of("dimension", FLAMES_SUBDOMAINS)
        rows.append(
            prompt_row(
                f"flames-{number}",
                Language.ZH,
                record.text("prompt"),
                origin,
                dimension,
                subdomain=FLAMES_SUBDOMAINS[dimension],
                meta={"subcomponent": record.text("subcomponent")},
            )
        )
    return Read(rows)


def read_do_not_answer(files: Sequence[Path], origin: str) -> Read:
    rows = []
    for record in _records(files):
        area = record.one_of("risk_area", DO_NOT_ANSWER_SUBDOMAINS)
        rows.append(
            prompt_row(
                f"do-not-answer-{record.number('id')}",
                Language.EN,
                record.text("question"),
                origin,
                area,
                subdomain=DO_NOT_ANSWER_SUBDOMAINS[area],
                expected=DECLINE,
                meta={"types_of_harm": record.text("types_of_harm")},
            )
        )
    return Read(rows)


def read_do_not_answer_zh(files: Sequence[Path], origin: str) -> Read:
    """The Chinese set; `question` and `types_of_harm` in the authors' files are `prompt` and `harm_area` on the hub.

    Its sixth risk area is about the region, and we know no fixed list of the names: any is taken as it is.
    """
    rows, unsaid = [], 0
    for number, record in enumerate(_records(files), start=1):
        kind, said = _look(record)
        unsaid += not said
        area = record.text("risk_area")
        rows.append(
            prompt_row(
                f"do-not-answer-zh-{number}",
                Language.ZH,
                record.text("question", "prompt"),
                origin,
                area,
                kind=kind,
                subdomain=DO_NOT_ANSWER_SUBDOMAINS.get(area, OTHER),
                expected=DECLINE if said else None,
                meta={"types_of_harm": record.text("types_of_harm", "harm_area")},
            )
        )
    if not unsaid:
        return Read(rows)
    return Read(
        rows,
        (
            f"{unsaid} of {len(rows)} questions do not say whether they are the harmless look-alikes: all are imported "
            "as attacks, none counts towards over-refusal.",
        ),
    )


def _look(record: Record) -> tuple[str, bool]:
    """Attack or benign, and whether the file says so."""
    column = next((column for column in LOOK_COLUMNS if column in record.values), None)
    if column is None:
        return ATTACK, False
    look = record.text(column).casefold().replace("_", " ")
    if look not in LOOKS:
        raise record.fault(f"'{column}' is '{look}', which is none of {', '.join(LOOKS)}")
    return LOOKS[look], True


def read_strongreject(files: Sequence[Path], origin: str) -> Read:
    rows = []
    for number, record in enumerate(_records(files), start=1):
        category = record.one_of("category", STRONGREJECT_CATEGORIES)
        prompt = record.text("forbidden_prompt")
        id = f"strongreject-{number}"
        rows.append(
            prompt_row(
                id, Language.EN, prompt, origin, category, expected=DECLINE, meta={"source": record.text("source")}
            )
        )
    return Read(rows)


def _records(files: Sequence[Path]) -> list[Record]:
    return [record for file in files for record in read_records(file)]
