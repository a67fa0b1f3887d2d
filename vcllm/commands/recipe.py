"""`vcllm recipe`: check a recipe before it is queued."""

from __future__ import annotations

from typing import Annotated

import typer

from vcllm.commands.display import open_console
from vcllm.recipes import load_recipe, recipe_names, stage_names
from vcllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Recipes.")


@app.command()
def check(name: Annotated[str, typer.Argument(help="A recipe's name, without .toml.")]) -> None:
    """Read a recipe as a run would, and say what it does or what is wrong with it."""
    recipe = load_recipe(Settings().recipes, name)
    base = recipe.base.model or "a tiny model from scratch"
    how = "all weights" if recipe.lora is None else f"LoRA of rank {recipe.lora.rank}"
    open_console().print(
        f"{recipe.name}: {base}, {how}, charter {recipe.charter}, seed {recipe.seed}."
        f" Stages: {', '.join(stage_names(recipe))}.",
        highlight=False,
    )


@app.command("list")
def list_recipes() -> None:
    """The recipes that are installed."""
    for name in recipe_names(Settings().recipes):
        typer.echo(name)
