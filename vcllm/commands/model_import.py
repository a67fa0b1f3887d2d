"""`vcllm models import`: a ready-made model becomes a version of the store on this machine.

Copies and hashes files; whether a server can work with what is in them, it finds out when it loads the version.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError
from vcllm.contracts.base import digest
from vcllm.contracts.manifests import ROLES, Manifest, Role
from vcllm.settings import Settings
from vcllm.stores.models import MANIFEST, ModelStore, hash_files

COPIED = {".safetensors", ".json", ".jinja", ".model", ".txt"}
"""Weights, configuration, tokenizer and chat template; what else a folder holds is left behind."""
NOTHING = digest([])
"""Of recipe, charter and data set: none of ours made it."""


def import_model(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder with all weights, as safetensors.")],
    version: Annotated[str, typer.Argument(help="The name of the new version: a-z, 0-9, '.', '_', '-'.")],
    role: Annotated[str, typer.Option(help="critic, or attacker.")] = "critic",
) -> None:
    """Take a ready-made model into this machine's model store, as a judge for example. It is not promoted."""
    if role not in ROLES or role == "actor":
        raise CommandError(
            f"--role {role}: critic or attacker. Actors come from a recipe's base, and through the gate."
        )
    store = ModelStore(Settings().models)
    if store.has(role, version):
        raise CommandError(
            f"There is a {role} version '{version}' already, and versions never change: take another name."
        )
    take_in(store, folder, role, version)
    open_console().print(f"{role}/{version} is in the model store.", highlight=False)


def take_in(store: ModelStore, folder: Path, role: Role, version: str) -> Manifest:
    """Copy a folder's model into the store; CommandError when it is no whole model."""
    files = [file for file in folder.glob("*") if file.suffix in COPIED and file.name != MANIFEST]
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise CommandError(f"{folder} holds no whole model: it needs a config.json and its weights as .safetensors.")
    staged = store.staging(role, version)
    try:
        for file in files:
            shutil.copyfile(file, staged / file.name)
        manifest = Manifest(
            role=role,
            name=version,
            lineage=version,
            stage="import",
            format="full",
            files=hash_files(staged),
            recipe={},
            recipe_hash=NOTHING,
            charter=NOTHING,
            dataset=NOTHING,
            token=0,
            job="",
            created=time.time(),
        )
        store.commit(staged, manifest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest
