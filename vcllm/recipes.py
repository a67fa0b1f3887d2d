"""Reads recipes from a folder of TOML files, and says which stages one has and where what they make belongs.

Knows the files, which part of a charter they use, and the order of stages; what a stage does is the trainer's business.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from pydantic import ValidationError

from vcllm.charter import CharterError, LoadedCharter
from vcllm.contracts.base import NAME_PATTERN, digest
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Recipe

MAX_RECIPE_NAME = 28
"""Characters of it in the name of a lineage; with the longest seed and stage that makes 64."""


def load_recipe(folder: Path, name: str) -> Recipe:
    """The recipe `<folder>/<name>.toml`; BadRequest says in one sentence what is wrong with it."""
    file = folder / f"{name}.toml"
    if not re.fullmatch(NAME_PATTERN, name) or not file.is_file():
        known = ", ".join(recipe_names(folder)) or "none yet; the folder that VCLLM_RECIPES names is empty"
        raise BadRequest(f"There is no recipe '{name}'. There are: {known}.", param="recipe", code="recipe_not_found")
    try:
        return Recipe.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _broken(file, f"is not valid TOML: {error}") from error
    except ValidationError as error:
        raise _broken(file, _fault(error)) from error


def recipe_names(folder: Path) -> list[str]:
    """Recipes that can be asked for, sorted."""
    return sorted(file.stem for file in folder.glob("*.toml") if re.fullmatch(NAME_PATTERN, file.stem))


def used_part(recipe: Recipe, whole: LoadedCharter) -> LoadedCharter:
    """The cards and tactics of its charter that a recipe uses; BadRequest names tactics that are not there."""
    try:
        return whole.with_first_cards(recipe.cards_per_subdomain).with_tactics(recipe.tactics)
    except CharterError as error:
        fault = f"Recipe '{recipe.name}' cannot be used: tactics: {error}."
        raise BadRequest(fault, param="recipe", code="recipe_invalid") from error


def stage_names(recipe: Recipe) -> list[str]:
    """Every stage of the recipe, in the order in which a whole pipeline runs them."""
    return [
        "pretrain" if recipe.base.scratch is not None else "import",
        *(["cpt"] if recipe.cpt is not None else []),
        "sft",
        "critic",
        "attacker",
        *(f"round-{number}" for number in range(1, recipe.rounds.count + 1)),
        *(["control"] if recipe.control else []),
        "report",
    ]


def lineage_name(recipe: Recipe, seed: int, charter_hash: str) -> str:
    """Where versions and pairs belong when nobody names a lineage: the same content has the same one.

    The recipe's name is cut where versions, which put their stage behind this, would get too long a name.
    """
    content = digest([recipe.model_dump(mode="json"), charter_hash])
    return f"{recipe.name[:MAX_RECIPE_NAME]}-s{seed}-{content[:8]}"


def _broken(file: Path, fault: str) -> BadRequest:
    return BadRequest(f"Recipe {file.name} {fault}.", param="recipe", code="recipe_invalid")


def _fault(error: ValidationError) -> str:
    """The first fault: where it is, as a TOML key path, and what is wrong there."""
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"])
    what = {
        "extra_forbidden": "there is no such key",
        "missing": "this key is missing",
        "value_error": str(first.get("ctx", {}).get("error", first["msg"])),
    }.get(first["type"], first["msg"])
    more = f" (and {len(others)} more)" if others else ""
    return f"cannot be used: {where + ': ' if where else ''}{what}{more}"
