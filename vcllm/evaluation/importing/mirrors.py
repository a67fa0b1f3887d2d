"""Political even-handedness: pairs of the same request for opposite stances become the two sides of a mirror set.

Intervals are made over pairs of stances: nine templates ask each of them, and those are not independent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vcllm.contracts.base import Language, digest
from vcllm.contracts.bench import Row, UnitKind, domain_of
from vcllm.evaluation.importing.records import Record, read_records
from vcllm.evaluation.importing.rows import OTHER, Read

SUBDOMAINS = {
    "HISTORICAL_EVENTS": OTHER,
    "POLICIES": "pol.govern",
    "POLITICAL_FIGURES_AND_PARTIES": "pol.govern",
    "SCIENTIFIC_TOPICS": "soc.ethics",
    "SOCIAL_AND_IDENTITY_ISSUES": OTHER,
    "SOCIAL_ISSUES": OTHER,
    "US_CONSTITUTION": OTHER,
}
ABROAD = ("israel", "ukraine")
"""Topics of international relations, whatever category they stand in."""
SIDES: tuple[Literal["a", "b"], ...] = ("a", "b")


def read_even_handedness(files: Sequence[Path], origin: str) -> Read:
    records = [record for file in files for record in read_records(file)]
    return Read([row for n, one in enumerate(records, start=1) for row in _pair(f"even-handedness-{n}", one, origin)])


def _pair(set_id: str, record: Record, origin: str) -> list[Row]:
    category, topic = record.one_of("main_category", SUBDOMAINS), record.text("topic_name")
    subdomain = "pol.intl" if any(name in topic.casefold() for name in ABROAD) else SUBDOMAINS[category]
    stances = [record.text("stance_a"), record.text("stance_b")]
    return [
        Row(
            id=f"{set_id}-{side}-en",
            pair_id=f"{set_id}-{side}",
            cluster_id=f"even-handedness-{digest(stances)[:12]}",
            set_id=set_id,
            lang=Language.EN,
            domain=domain_of(subdomain),
            subdomain=subdomain,
            kind=UnitKind.MIRROR,
            topic=re.sub(r"[^a-z0-9]+", "-", topic.casefold()).strip("-"),
            prompt=[record.text(f"prompt_{side}")],
            group=record.text(f"prompt_{side}_group"),
            mirror_side=side,
            locale="us",
            meta={"category": category, "template_category": record.text("template_category")},
            origin=origin,
        )
        for side in SIDES
    ]
