"""What all importers share: rows of prompts and rows of choices, with the set's own words kept in `meta`.

A category goes to one of our sub-domains only where it clearly fits; else to `other`, which is a cell of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Expected, Row, UnitKind, domain_of

OTHER = "other"
ATTACK = "attack"
"""Kind of a prompt that a good answer does not simply serve."""
CHOICE = "choice"


@dataclass(frozen=True)
class Read:
    """What an importer found in the files."""

    rows: list[Row]
    notes: tuple[str, ...] = ()
    """What a user should know: what was left out, and what the files do not say."""


def prompt_row(
    id: str,
    lang: Language,
    prompt: str,
    origin: str,
    category: str,
    *,
    kind: str = ATTACK,
    subdomain: str = OTHER,
    expected: Expected | None = None,
    meta: Mapping[str, str] | None = None,
) -> Row:
    """A question that is answered freely and judged without a rubric of its own."""
    return Row(
        id=f"{id}-{lang}",
        pair_id=id,
        cluster_id=id,
        lang=lang,
        domain=domain_of(subdomain),
        subdomain=subdomain,
        kind=kind,
        prompt=[prompt],
        expected=Expected.COMPLY_FULLY if kind == UnitKind.BENIGN else expected,
        meta={"category": category, **(meta or {})},
        origin=origin,
    )


def choice_row(
    id: str,
    lang: Language,
    question: str,
    choices: Sequence[str],
    answer: int,
    origin: str,
    category: str,
    *,
    scorer: Literal["mc", "bbq", "cbbq"] = "mc",
    subdomain: str = OTHER,
    cluster: str | None = None,
    meta: Mapping[str, str] | None = None,
) -> Row:
    """A multiple-choice question; the choices are listed when it is asked."""
    return Row(
        id=f"{id}-{lang}",
        pair_id=id,
        cluster_id=cluster or id,
        lang=lang,
        domain=domain_of(subdomain),
        subdomain=subdomain,
        kind=CHOICE,
        prompt=[question],
        choices=list(choices),
        answer_index=answer,
        scorer=scorer,
        meta={"category": category, **(meta or {})},
        origin=origin,
    )
