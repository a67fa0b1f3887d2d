"""A role that serves the model in one folder as it is: no version of the store, no Redis needed.

For looking at a model before anything is made of it, such as measuring a base. Nobody vouches for the folder's content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from vcllm.contracts.base import NAME_PATTERN
from vcllm.contracts.problems import NotFound
from vcllm.engine.load import Loaded, Loader
from vcllm.serving.pool import Closable
from vcllm.serving.proof import refusing
from vcllm.serving.versions import check_arithmetic

M = TypeVar("M", bound=Closable)


def folder_name(folder: Path) -> str:
    """The name it is served under: that of the folder, in the letters names may have."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")
    return name if re.fullmatch(NAME_PATTERN, name) else "model"


class FolderOpener(Generic[M]):
    """Opens the one model there is. `wrap` makes of it what is served."""

    def __init__(self, folder: Path, loader: Loader, wrap: Callable[[Loaded], M]) -> None:
        self.folder = folder
        self.name = folder_name(folder)
        self.loader = loader
        self.wrap = wrap

    def open(self, version: str) -> M:
        """NotFound for any other name; Refused when the folder holds no sound model."""
        if version != self.name:
            raise NotFound(
                f"There is no model '{version}': this server serves '{self.name}' only.", code="model_not_found"
            )
        with refusing(self.name):
            loaded = self.loader.load(self.folder)
            check_arithmetic(loaded, self.name)
            return self.wrap(loaded)

    def checksum(self, version: str) -> str:
        """Empty: there is no manifest."""
        return ""

    def shortage(self, version: str, *, alone: bool) -> str | None:
        """None: there is nothing else it could wait for."""
        return None
