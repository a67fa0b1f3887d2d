"""`vcllm charter`: check a value charter before a run depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vcllm.charter import LoadedCharter, load_charter
from vcllm.commands.display import open_console
from vcllm.contracts.charter import Split
from vcllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Value charters.")


@app.callback()
def charters() -> None:
    """Value charters."""


@app.command()
def check(
    path: Annotated[Path | None, typer.Argument(help="A charter's folder; default: the one that is shipped.")] = None,
) -> None:
    """Read a charter as a run would, and say what is in it or what is wrong with it."""
    loaded = load_charter(path)
    splits = ", ".join(f"{len(loaded.cards_of(split))} {split}" for split in Split)
    open_console().print(
        f"{loaded.charter.name.en} ({loaded.charter.id}): {len(loaded.charter.principles)} principles,"
        f" {len(loaded.taxonomy.subdomains)} sub-domains, {len(loaded.cards)} cards ({splits}),"
        f" {len(loaded.tactics)} tactics. Both languages are complete. Hash {loaded.hash[:12]}.",
        highlight=False,
    )


def named_charter(settings: Settings, name: str) -> LoadedCharter:
    """The charter a recipe names: the operator's own of that name, else the shipped one."""
    own = None if settings.charters is None else settings.charters / name
    return load_charter(own if own is not None and own.is_dir() else None)
