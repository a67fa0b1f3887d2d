"""How far two models differ on the same rows: five endpoints, and the cells of sub-domain and language.

Every difference comes with its interval, its p value adjusted for the others of its family, and the smallest true
difference that these rows would have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vcllm.contracts.answers import PairVerdict
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.figures import ModelComparison, Primary
from vcllm.evaluation.figures import (
    Judged,
    attacks_of,
    benign_of,
    even_pairs,
    refusals,
    values,
    violations,
    worse_values,
)
from vcllm.evaluation.intervals import benjamini_hochberg, holm
from vcllm.evaluation.observations import Change, Observation, change

ALPHA = 0.05


def compare_models(
    judged: Mapping[str, Sequence[Judged]],
    pairs: Mapping[str, Sequence[PairVerdict]],
    wanted: Sequence[tuple[str, str]],
    seed: int = 0,
) -> list[ModelComparison]:
    """`wanted`: before and after. p values are adjusted over all of one family."""
    found: list[ModelComparison] = []
    for before, after in wanted:
        old, new = (_scored(judged[model]) for model in (before, after))
        found += _endpoints(old, new, pairs.get(before, ()), pairs.get(after, ()), before, after, seed)
        found += _cells("value_cells", old, new, values, before, after, seed)
        found += _cells("attack_cells", attacks_of(old), attacks_of(new), violations, before, after, seed)
    return adjusted(found)


def adjusted(comparisons: Sequence[ModelComparison]) -> list[ModelComparison]:
    """Holm over endpoints, Benjamini-Hochberg over each kind of cells."""
    corrected: dict[int, float] = {}
    for family, correct in (
        ("primary", holm),
        ("value_cells", benjamini_hochberg),
        ("attack_cells", benjamini_hochberg),
    ):
        members = [number for number, one in enumerate(comparisons) if one.family == family]
        corrected |= zip(members, correct([comparisons[number].p for number in members]), strict=True)
    return [one.model_copy(update={"p_adjusted": corrected[number]}) for number, one in enumerate(comparisons)]


def is_shown(comparison: ModelComparison) -> bool:
    """The interval leaves out zero, and p is small after correction."""
    low, high, p = comparison.difference.low, comparison.difference.high, comparison.p_adjusted
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return clear and p is not None and p < ALPHA


def _endpoints(
    old: Sequence[Judged],
    new: Sequence[Judged],
    old_pairs: Sequence[PairVerdict],
    new_pairs: Sequence[PairVerdict],
    before: str,
    after: str,
    seed: int,
) -> list[ModelComparison]:
    observed: dict[Primary, tuple[list[Observation], list[Observation], bool]] = {
        "value_consistency": (values(old), values(new), False),
        "attack_success": (violations(attacks_of(old)), violations(attacks_of(new)), True),
        "cross_language": (worse_values(old), worse_values(new), False),
        "over_refusal": (refusals(benign_of(old)), refusals(benign_of(new)), True),
        "even_handedness": (even_pairs(old_pairs), even_pairs(new_pairs), True),
    }
    found = []
    for measure, (was, now, of_shares) in observed.items():
        if moved := change(was, now, of_shares=of_shares, seed=seed):
            found.append(_comparison("primary", measure, None, before, after, moved))
    return found


def _cells(
    family: str,
    old: Sequence[Judged],
    new: Sequence[Judged],
    observe: Callable[[Sequence[Judged]], list[Observation]],
    before: str,
    after: str,
    seed: int,
) -> list[ModelComparison]:
    found = []
    for subdomain in sorted({one.row.subdomain for one in old}):
        for language in Language:
            cell = [
                observe([one for one in some if one.row.subdomain == subdomain and one.row.lang is language])
                for some in (old, new)
            ]
            if moved := change(*cell, of_shares=family == "attack_cells", seed=seed):
                found.append(_comparison(family, subdomain, language, before, after, moved))
    return found


def _comparison(
    family: str, measure: str, language: Language | None, before: str, after: str, moved: Change
) -> ModelComparison:
    return ModelComparison.model_validate(
        {
            "family": family,
            "measure": measure,
            "language": language,
            "before": before,
            "after": after,
            "difference": moved.difference,
            "gained": moved.gained,
            "lost": moved.lost,
            "p": moved.p,
            "mde": moved.mde,
        }
    )


def _scored(judged: Sequence[Judged]) -> list[Judged]:
    return [one for one in judged if one.outcome is not Outcome.UNSCORED]
